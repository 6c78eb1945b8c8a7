"""The first process of a sandbox: makes the namespaces, forks tester and worker, watches, reports, clears up.

Standard input carries two frames (``wire``): the configuration, then the texts, which are read only after both forks,
so that the worker does not inherit them. Standard output carries one: the outcome, or which layers work.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from agentic_compression.sandbox.inside import mounts, tester, wire, worker
from agentic_compression.sandbox.inside.confine import confine, die_with_parent, tasks_of_this_user
from agentic_compression.sandbox.inside.kernel import prctl

__all__ = ["main"]

_PR_SET_CHILD_SUBREAPER = 36
_SETTLE_SECONDS = 1.0
_CPU_SHARE = 0.5  # of the limit: the kernel holds it in ticks, which run ahead of the time it reports under load
_TASKS_MEANWHILE = 64  # that the same user may start elsewhere before the program's last thread


def main() -> None:
    """Serve one request."""
    die_with_parent()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    configuration = wire.receive(0)
    if configuration is None:
        return
    if configuration["mode"] == "probe":
        from agentic_compression.sandbox.inside import probe

        wire.send(1, {"layers": probe.working_layers(sys.argv[1], configuration["limits"])})
        return
    wire.send(1, _Guardian(configuration).run())


class _Guardian:
    """One program's run."""

    def __init__(self, configuration: dict[str, Any]) -> None:
        self.layers: list[str] = configuration["layers"]
        self.limits: dict[str, Any] = configuration["limits"]
        self.folder = sys.argv[1]
        self.deadline = time.monotonic() + self.limits["seconds"]
        self.output = bytearray()
        self.quiet = os.open("/dev/null", os.O_RDONLY)
        self.ended: dict[int, tuple[int, resource.struct_rusage]] = {}

    def run(self) -> dict[str, Any]:
        """``status``, ``message`` and ``output``; or ``broken``: why a layer could not be applied."""
        tasks_before = tasks_of_this_user() + _TASKS_MEANWHILE
        own_user = False
        try:
            if "namespaces" in self.layers:
                own_user = mounts.enter(self.folder, self.limits["file_bytes"])
            else:
                os.chdir(self.folder)
        except OSError as error:
            return {"broken": f"namespaces: {error}"}
        calls, answers, tasks, texts, verdict, output, ready = (os.pipe() for _ in range(7))

        def confined(*keep: int) -> None:
            """In a child: standard streams, only the descriptors of its part, all layers; then one byte says so."""
            os.dup2(self.quiet, 0)
            os.dup2(output[1], 1)
            os.dup2(output[1], 2)
            _close_all_but({0, 1, 2, ready[1], *keep})
            confine(self.layers, self.limits, own_user=own_user, tasks_before=tasks_before)
            os.write(ready[1], b"+")
            os.close(ready[1])

        def test() -> None:
            confined(texts[0], answers[0], calls[1], verdict[1])
            tester.judge(texts[0], answers[0], calls[1], verdict[1])

        def work() -> None:
            confined(tasks[0], calls[0], answers[1])
            _hide_the_package()
            worker.serve(tasks[0], calls[0], answers[1])

        self.tester = _fork(test)
        try:
            if "namespaces" in self.layers:
                mounts.new_process_tree()
        except OSError as error:
            self._end_all()
            return {"broken": f"namespaces: {error}"}
        self.worker = _fork(work)
        ours = {ready[0], tasks[1], texts[1], verdict[0], output[0]}
        for descriptor in {*calls, *answers, *tasks, *texts, *verdict, *output, *ready} - ours:
            os.close(descriptor)
        return self._supervise(ready[0], tasks[1], texts[1], verdict[0], output[0])

    def _supervise(self, ready: int, tasks: int, texts: int, verdict: int, output: int) -> dict[str, Any]:
        told = b""
        while (part := os.read(ready, 2)) and len(told) < 2:
            told += part
        if told != b"++":
            self._end_all()
            self._drain(output)
            return {"broken": self.output.decode(errors="replace")[-500:] or "a process could not confine itself"}
        request = wire.receive(0) or {}
        try:
            wire.send(texts, {key: request[key] for key in ("helpers", "test", "entry_point")})
            wire.send(tasks, {key: request[key] for key in ("program", "entry_point")})
        except BrokenPipeError:  # a child died; _watch says how
            pass
        os.close(texts)
        os.close(tasks)
        said = self._watch(verdict, output)
        outcome = self._outcome(said)
        self._end_all()
        self._drain(output)
        return {**outcome, "output": base64.b64encode(self.output).decode()}

    def _watch(self, verdict: int, output: int) -> bytes | None:
        """What the tester wrote by the deadline (empty: it ended without a word), or None at the deadline."""
        poll = select.poll()
        poll.register(verdict, select.POLLIN)
        poll.register(output, select.POLLIN)
        said = b""
        while (left := self.deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000 + 1):
                part = os.read(descriptor, 1 << 16)
                if descriptor == verdict:
                    said += part
                    if not part or said.endswith(b"\n"):
                        return said
                elif part:
                    self.output += part[: self.limits["output_bytes"] - len(self.output)]
                else:
                    poll.unregister(output)
        return None

    def _drain(self, output: int) -> None:
        """What is in the pipe still; all writers are dead."""
        os.set_blocking(output, False)
        try:
            while len(self.output) < self.limits["output_bytes"] and (part := os.read(output, 1 << 16)):
                self.output += part[: self.limits["output_bytes"] - len(self.output)]
        except BlockingIOError:
            return

    def _outcome(self, said: bytes | None) -> dict[str, str]:
        if said is None:
            return {"status": "timed_out", "message": f"did not end within {self.limits['seconds']} s"}
        try:
            found = json.loads(said)
        except ValueError:
            return self._death(self.tester, "the test's process") or {
                "status": "failed",
                "message": "the test's process ended without a verdict",
            }
        if "gone" in found:
            death = self._death(self.worker, "the program")
            return death or {"status": found["status"], "message": found["message"]}
        return {"status": found["status"], "message": found["message"]}

    def _death(self, pid: int, who: str) -> dict[str, str] | None:
        """How a process ended, when it did so other than by a plain exit with status 0; None when that is no reason."""
        until = time.monotonic() + _SETTLE_SECONDS
        while not self._reap(pid) and time.monotonic() < until:
            time.sleep(0.002)
        if pid not in self.ended:
            return None
        status, usage = self.ended[pid]
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            return {"status": "failed", "message": f"{who} ended the interpreter with exit status {code}"}
        used = usage.ru_utime + usage.ru_stime
        if code == -signal.SIGKILL and used >= self.limits["cpu_seconds"] * _CPU_SHARE:
            return {"status": "timed_out", "message": f"used its {self.limits['cpu_seconds']} s of processor time"}
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return {"status": "killed", "message": f"{who} was ended by {name}"}

    def _reap(self, pid: int) -> bool:
        if pid not in self.ended:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done == pid:
                self.ended[pid] = (status, usage)
                _forked.discard(pid)
        return pid in self.ended

    def _end_all(self) -> None:
        """Kill whatever descends from this process, orphans included, until nothing is left.

        With a process namespace the worker's descendants die with it. Without, they have become this process's
        children (it is the subreaper) or will; where the filter forbids new processes there are none.
        """
        while True:
            for pid in _descendants():
                _kill(pid)
            try:
                _forked.discard(os.waitpid(-1, 0)[0])
            except ChildProcessError:
                return


def _descendants() -> list[int]:
    """Processes below this one; its direct children alone where /proc is out of sight, which suffices there."""
    own = os.getpid()
    try:
        parents = {int(entry): _parent(entry) for entry in os.listdir("/proc") if entry.isdigit()}
    except OSError:
        return list(_forked)
    found = {own}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return list(found - {own})


def _parent(entry: str) -> int:
    try:
        with open(f"/proc/{entry}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


_forked: set[int] = set()


def _fork(body: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        _forked.clear()
        _child(body)
    _forked.add(pid)
    return pid


def _child(body: Callable[[], None]) -> NoReturn:
    try:
        body()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode()[:1000])
    finally:
        os._exit(1)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _hide_the_package() -> None:
    """The program finds a plain interpreter; the functions in use keep their own references."""
    for name in [name for name in sys.modules if name.startswith("agentic_compression")]:
        del sys.modules[name]
    sys.argv[:] = [worker.NAME]
    os.environ.update({"HOME": os.getcwd(), "TMPDIR": os.getcwd()})


def _close_all_but(keep: set[int]) -> None:
    """Of this process's descriptors, all of which were opened here and are low."""
    for descriptor in set(range(64)) - keep:
        try:
            os.close(descriptor)
        except OSError:
            continue
