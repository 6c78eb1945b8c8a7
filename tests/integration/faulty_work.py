"""Real evaluations that something goes wrong in: entries for the supervisor, run in its children."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

from agentic_compression.evaluation.evaluate import evaluate
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.progress import Progress
from agentic_compression.records import EvaluationOutcome

__all__ = ["aborted", "in_little_memory", "killed", "stuck"]

_ROOM = 64 << 20


def in_little_memory(request: EvaluationRequest, progress: Progress) -> EvaluationOutcome:
    """The process may grow by 64 MB of address space and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return evaluate(request, progress)


def aborted(request: EvaluationRequest, progress: Progress) -> EvaluationOutcome:
    """C code calls ``abort`` while items are scored."""

    def falls_over(what: str, done: int, total: int) -> None:
        progress(what, done, total)
        if what == "items":
            os.abort()

    return evaluate(request, falls_over)


def killed(request: EvaluationRequest, progress: Progress) -> EvaluationOutcome:
    """The kernel's out-of-memory killer ends the process while it measures."""

    def falls_over(what: str, done: int, total: int) -> None:
        progress(what, done, total)
        if what == "load":
            os.kill(os.getpid(), signal.SIGKILL)

    return evaluate(request, falls_over)


def stuck(request: EvaluationRequest, progress: Progress) -> EvaluationOutcome:
    """The measurement never ends, and a process it started does not either."""

    def hangs(what: str, done: int, total: int) -> None:
        progress(what, done, total)
        if what == "memory":
            if os.fork() == 0:
                signal.pause()
            signal.pause()

    return evaluate(request, hangs)
