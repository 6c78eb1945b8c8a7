"""Runs tasks in children of the forkserver: time limits, cancellation, and crashes turned into outcomes."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from agentic_compression.errors import AcfError
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Record
from agentic_compression.settings import get_settings

__all__ = ["Supervisor", "TaskOutcome", "shared_supervisor"]

PRELOAD = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "agentic_compression.methods.compress",
    "agentic_compression.evaluation.evaluate",
    "agentic_compression.runtimes.transformers_runtime",
    "lm_eval.evaluator",
)

# Waiting OpenMP threads must sleep, not spin: on a shared machine spinning makes decoding several times slower.
_CHILD_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


class TaskOutcome(Record):
    """What became of a task: its result as JSON, or why there is none."""

    status: Literal["succeeded", "failed", "infeasible", "oom", "timed_out"]
    result: dict[str, Any] | None = None
    error: str | None = None
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


class Supervisor:
    """Owns one forkserver and runs one task at a time in it.

    Example:
        >>> with Supervisor() as supervisor:
        ...     outcome = supervisor.run("package.module:function", request, timeout_s=60)
    """

    def __init__(self, log_folder: Path | None = None, preload: tuple[str, ...] = PRELOAD) -> None:
        self.progress: Progress = no_progress
        self._log_folder = log_folder
        self._preload = preload
        self._server: subprocess.Popen[bytes] | None = None
        self._events = -1
        self._buffer = b""
        self._task = 0
        self._child: int | None = None

    def __enter__(self) -> Supervisor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the forkserver and return at once; the imports go on in it meanwhile."""
        if self._server is not None and self._server.poll() is None:
            return
        self.close()
        read_end, write_end = os.pipe()
        environment = {**_CHILD_ENVIRONMENT, **os.environ, "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "agentic_compression.execution.forkserver", "--events", str(write_end)]
        command += ["--preload", ",".join(self._preload)]
        if self._log_folder is not None:
            self._log_folder.mkdir(parents=True, exist_ok=True)
        log = self._log_folder / "forkserver.log" if self._log_folder else Path(os.devnull)
        with log.open("ab") as log_file:
            self._server = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log_file,
                stderr=log_file,
                pass_fds=(write_end,),
                start_new_session=True,
                env=environment,
            )
        os.close(write_end)
        self._events, self._buffer = read_end, b""

    def run(
        self,
        entry: str,
        request: Record,
        *,
        timeout_s: float,
        progress: Progress | None = None,
    ) -> TaskOutcome:
        """Run ``entry(request, progress)`` in a fresh child and wait for it.

        Args:
            entry: ``"module:function"``; takes the request and a progress callback, returns a record.
            request: validated again in the child against its own type.
            timeout_s: seconds after which the child's whole process group is killed.
            progress: told of the child's progress; ``self.progress`` when None.

        Raises:
            KeyboardInterrupt: after the child's process group has been killed.
        """
        self.start()
        self._task += 1
        report = progress or self.progress
        request_type = f"{type(request).__module__}:{type(request).__qualname__}"
        log = str(self._log_folder / f"{entry.rsplit(':', 1)[-1]}.log") if self._log_folder else None
        message = {
            "task": self._task,
            "entry": entry,
            "request_type": request_type,
            "request": request.model_dump(mode="json"),
            "log": log,
        }
        begun = time.monotonic()
        try:
            self._write(message)
            return self._wait(begun, timeout_s, report)
        except BaseException:
            self.cancel()
            self.close()
            raise

    def cancel(self) -> None:
        """Kill the running child's process group, if there is one."""
        if self._child is not None:
            _kill_group(self._child)
            self._child = None

    def close(self) -> None:
        """End the forkserver and anything it still runs."""
        self.cancel()
        if self._server is not None:
            server, self._server = self._server, None
            assert server.stdin is not None
            try:
                server.stdin.close()
                server.wait(timeout=2)
            except (subprocess.TimeoutExpired, BrokenPipeError):
                server.kill()
                server.wait()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1

    def _write(self, message: dict[str, Any]) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        self._server.stdin.write((json.dumps(message) + "\n").encode())
        self._server.stdin.flush()

    def _wait(self, begun: float, timeout_s: float, report: Progress) -> TaskOutcome:
        result: dict[str, Any] | None = None
        failure: tuple[str, str] | None = None
        timed_out = False
        started = begun
        while True:
            remaining = None if self._child is None else max(0.0, started + timeout_s - time.monotonic())
            event = self._next_event(None if timed_out else remaining)
            if event is None:
                timed_out = True
                self.cancel()
                continue
            kind = event["event"]
            if kind == "lost":
                self._child = None
                return TaskOutcome(status="failed", error="the forkserver ended unexpectedly (see logs/forkserver.log)")
            if event.get("task") != self._task:
                continue
            if kind == "started":
                self._child, started = int(event["pid"]), time.monotonic()
            elif kind == "progress":
                report(str(event["what"]), int(event["done"]), int(event["total"]))
            elif kind == "result":
                result = event["result"]
            elif kind == "error":
                failure = (str(event["kind"]), str(event["error"]))
            elif kind == "exit":
                self._child = None
                return _outcome(event, result, failure, timed_out, (time.monotonic() - started, timeout_s))

    def _next_event(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The next event; None when the time is over first."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._events], [], [], wait)
            if not readable:
                return None
            chunk = os.read(self._events, 1 << 20)
            if not chunk:
                return {"event": "lost"}
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        event: dict[str, Any] = json.loads(line)
        return event


def _outcome(
    event: dict[str, Any],
    result: dict[str, Any] | None,
    failure: tuple[str, str] | None,
    timed_out: bool,
    seconds: tuple[float, float],
) -> TaskOutcome:
    wall, limit = seconds
    cpu, code = float(event["cpu_seconds"]), int(event["code"])
    if timed_out:
        error = f"took longer than {limit:g} s and was ended; raise episode_timeout_s to allow more"
        return TaskOutcome(status="timed_out", error=error, wall_seconds=wall, cpu_seconds=cpu)
    if failure is not None:
        kind, error = failure
        return TaskOutcome.model_validate({"status": kind, "error": error, "wall_seconds": wall, "cpu_seconds": cpu})
    if result is not None and code == 0:
        return TaskOutcome(status="succeeded", result=result, wall_seconds=wall, cpu_seconds=cpu)
    if code == -signal.SIGKILL:
        error = "the process was killed from outside, most likely for lack of memory"
        return TaskOutcome(status="oom", error=error, wall_seconds=wall, cpu_seconds=cpu)
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return TaskOutcome(status="failed", error=f"the process crashed ({name})", wall_seconds=wall, cpu_seconds=cpu)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


@cache
def shared_supervisor() -> Supervisor:
    """The one supervisor of this process; steps of all episodes share its warm forkserver.

    Raises:
        AcfError: on platforms without ``fork`` and ``pidfd`` (the framework runs on Linux).
    """
    if not hasattr(os, "pidfd_open"):
        raise AcfError(f"child processes need Linux (fork and pidfd), got {sys.platform}")
    supervisor = Supervisor(log_folder=get_settings().logs)
    atexit.register(supervisor.close)
    return supervisor
