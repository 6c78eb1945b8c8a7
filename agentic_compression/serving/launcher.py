"""Starts engine processes by forking one that has torch and transformers imported already.

Importing them takes seconds; a fork takes milliseconds, and the pages of library code are shared by all engines. The
server talks to the launcher over a socket of packets: a request carries the engine's own socket along.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import importlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from agentic_compression.errors import UnavailableError

__all__ = ["Launcher", "main"]

_PRELOAD = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "agentic_compression.runtimes.transformers_runtime",
    "agentic_compression.serving.llama_slots",
    "agentic_compression.serving.slots",
    "agentic_compression.serving.worker",
)
_PACKET_BYTES = 1 << 16
# Waiting OpenMP threads must sleep, not spin: the server and its clients need the cores meanwhile.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Launcher:
    """The server's side: owns the launching process. Used from one event loop.

    Args:
        log: file that gets what the launching process prints.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._tickets = itertools.count()
        self._started: dict[int, asyncio.Future[int]] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}

    def start(self) -> None:
        """Start the process and return at once; its imports go on meanwhile."""
        if self._process is not None and self._process.poll() is None:
            return
        self._lose()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agentic_compression.serving.launcher", "--control", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in a terminal ends the server, which lets the answers finish first
                env={**_ENVIRONMENT, **os.environ},
            )
        self._control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read, ours)

    async def launch(self, connection: socket.socket, folder: Path, options: str, log: Path) -> int:
        """Start an engine; its process id.

        Args:
            connection: the engine's end of its socket; closed here.
            folder: the checkpoint.
            options: ``EngineOptions`` as JSON.
            log: file that gets what the engine prints.

        Raises:
            UnavailableError: when the launching process is gone.
        """
        ticket = next(self._tickets)
        request = {"ticket": ticket, "folder": str(folder), "options": options, "log": str(log)}
        try:
            try:
                self._send(request, connection)
            except OSError:  # it died, which nobody has noticed yet
                self._lose()
                self._send(request, connection)
            self._started[ticket] = started = asyncio.get_running_loop().create_future()
            return await started
        except OSError as error:
            raise UnavailableError(f"engines must be startable, got {error}; see {self._log}") from error
        finally:
            connection.close()
            self._started.pop(ticket, None)

    def _send(self, request: dict[str, Any], connection: socket.socket) -> None:
        self.start()
        assert self._control is not None
        socket.send_fds(self._control, [json.dumps(request).encode()], [connection.fileno()])

    async def ended(self, pid: int) -> int:
        """Wait for an engine's end; its exit code, minus the signal where one ended it; -1 when asked again."""
        end = self._ends.get(pid)
        if end is None:
            return -1
        code = await end
        self._ends.pop(pid, None)
        return code

    def kill(self, pid: int) -> None:
        """End an engine at once; nothing happens when it has ended, for its id may be another's by now."""
        end = self._ends.get(pid)
        if end is not None and not end.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End the launching process; engines go on until their own sockets close."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _lose(self) -> None:
        """The launching process died: what becomes of its engines is not told, and the next launch starts another."""
        self.close()
        for started in self._started.values():
            if not started.done():
                started.set_exception(
                    UnavailableError(f"engines must be startable, got a launcher that ended; see {self._log}")
                )
        for end in self._ends.values():
            if not end.done():
                end.set_result(-1)

    def _read(self, control: socket.socket) -> None:
        try:
            packet = control.recv(_PACKET_BYTES)
        except ConnectionError:
            packet = b""
        if not packet:
            self._lose()
            return
        message = json.loads(packet)
        pid = message["pid"]
        if "ticket" in message:
            asked = self._started.get(message["ticket"])
            if asked is not None and not asked.done():  # who asked may have given up; the engine ends with its socket
                self._ends[pid] = asyncio.get_running_loop().create_future()
                asked.set_result(pid)
        elif (ended := self._ends.get(pid)) is not None and not ended.done():
            ended.set_result(message["code"])


def main() -> None:
    """The launching process: ``python -m agentic_compression.serving.launcher --control FD``."""
    parser = argparse.ArgumentParser(description="fork engine processes on request")
    parser.add_argument("--control", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().control)
    for name in _PRELOAD:
        importlib.import_module(name)
    from agentic_compression.checkpoints.load import preload_runtime

    preload_runtime()
    gc.collect()
    gc.freeze()  # so that collecting garbage in an engine does not copy the shared pages
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    while True:
        ready, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
            try:
                _tell_ends(control)
            except OSError:  # the server is gone
                os._exit(0)
        if control.fileno() in ready:
            packet, descriptors, _, _ = socket.recv_fds(control, _PACKET_BYTES, 1)
            if not packet:
                os._exit(0)
            request = json.loads(packet)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                _become_engine(descriptors[0], request)
            os.close(descriptors[0])
            try:
                control.send(json.dumps({"ticket": request["ticket"], "pid": pid}).encode())
            except OSError:
                os._exit(0)


def _tell_ends(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        control.send(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become_engine(descriptor: int, request: dict[str, str]) -> None:
    """Never returns."""
    code = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from agentic_compression.serving.worker import run_worker

        run_worker(socket.socket(fileno=descriptor), Path(request["folder"]), request["options"])
        code = 0
    except BaseException:
        traceback.print_exc()  # nothing else says why this process ended
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
