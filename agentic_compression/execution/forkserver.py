"""The server process: imports heavy modules once, then forks one child for every task line on standard input.

Protocol, one JSON object a line. In: ``{"task": 3, "entry": "module:function", "request_type":
"module:Record", "request": {…}, "log": "/path"}``. Out (file descriptor given by ``--events``): ``ready``,
``started`` (with the child's pid, which is also its process group), ``progress``, ``result`` or ``error``
from the child, and ``exit`` with its status once it is reaped. End of input ends the server and its child.

The server never computes anything itself, so that it has no threads at the time of a fork. Only the child
writes events while it lives and only the server after that, so that long lines cannot interleave.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve tasks until standard input ends."""
    parser = argparse.ArgumentParser(description="forks one child a task; started by the supervisor")
    parser.add_argument("--events", type=int, required=True, help="file descriptor to write events to")
    parser.add_argument("--preload", default="", help="comma list of modules to import first")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for module in filter(None, arguments.preload.split(",")):
        _import_quietly(module)
    _send(arguments.events, {"event": "ready"})
    _serve(arguments.events)
    os._exit(0)  # tearing down an interpreter with torch loaded takes seconds


def _serve(events: int) -> None:
    buffer = b""
    while True:
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return
        buffer += chunk
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            if not _run_child(json.loads(line), events):
                return


def _run_child(task: dict[str, Any], events: int) -> bool:
    """Fork, wait, report; False when standard input ended meanwhile (then the child is dead too)."""
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        _child(task, events, server)
    exit_handle = os.pidfd_open(pid)
    try:
        while True:
            readable, _, _ = select.select([exit_handle, 0], [], [])
            if exit_handle in readable:
                break
            if not _input_is_open():
                _kill_group(pid)
                os.waitpid(pid, 0)
                return False
    finally:
        os.close(exit_handle)
    _, status, usage = os.wait4(pid, 0)
    _kill_group(pid)
    code = os.waitstatus_to_exitcode(status)
    seconds = usage.ru_utime + usage.ru_stime
    _send(events, {"task": task["task"], "event": "exit", "code": code, "cpu_seconds": seconds})
    return True


def _input_is_open() -> bool:
    """Whether the supervisor still holds the other end; it never writes while a task runs."""
    return bool(os.read(0, 1))


def _child(task: dict[str, Any], events: int, server: int) -> None:
    """Run one task in this forked process and never return."""
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        _send(events, {"task": task["task"], "event": "started", "pid": os.getpid()})
        _redirect_output(task.get("log"))
        code = _perform(task, events)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _perform(task: dict[str, Any], events: int) -> int:
    number = task["task"]

    def progress(what: str, done: int, total: int) -> None:
        _send(events, {"task": number, "event": "progress", "what": what, "done": done, "total": total})

    try:
        request = _attribute(task["request_type"]).model_validate(task["request"])
        result = _attribute(task["entry"])(request, progress)
        _send(events, {"task": number, "event": "result", "result": result.model_dump(mode="json")})
        return 0
    except BaseException as error:
        traceback.print_exc()
        _send(events, {"task": number, "event": "error", "kind": _kind(error), "error": _one_line(error)})
        return 3


def _kind(error: BaseException) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "oom"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "oom"
    return "infeasible" if type(error).__name__ == "InfeasibleError" else "failed"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:1500]
    if any(base.__name__ == "AcfError" for base in type(error).__mro__):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _attribute(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _redirect_output(log: str | None) -> None:
    quiet = os.open(os.devnull, os.O_RDONLY)
    os.dup2(quiet, 0)
    target = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)


def _import_quietly(module: str) -> None:
    """A module that cannot be imported fails in the task that needs it, with its own message."""
    try:
        importlib.import_module(module)
    except Exception:
        traceback.print_exc()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _send(events: int, message: dict[str, Any]) -> None:
    data = (json.dumps(message, allow_nan=True) + "\n").encode()
    while data:
        data = data[os.write(events, data) :]


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    main()
