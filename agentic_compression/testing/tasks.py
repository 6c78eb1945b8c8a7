"""Tasks for the supervisor's own tests: they misbehave in every way a real one may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from agentic_compression.errors import CompressionError, InfeasibleError
from agentic_compression.progress import Progress
from agentic_compression.records import Record

__all__ = ["TaskReply", "TaskRequest", "misbehave"]


class TaskRequest(Record):
    """What the task shall do."""

    behaviour: str
    text: str = ""
    seconds: float = 60.0


class TaskReply(Record):
    """What the task saw."""

    text: str
    pid: int
    group: int


def misbehave(request: TaskRequest, progress: Progress) -> TaskReply:
    """Do what ``request.behaviour`` names: echo, raise, crash, exit, sleep, hog, kill, orphan."""
    match request.behaviour:
        case "echo":
            for step in range(3):
                progress("echoing", step + 1, 3)
        case "raise":
            raise CompressionError(request.text)
        case "infeasible":
            raise InfeasibleError(request.text)
        case "memory":
            raise MemoryError("cannot allocate")
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            time.sleep(request.seconds)
        case "orphan":
            child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({request.seconds})"])
            Path(request.text).write_text(f"{os.getpid()} {child.pid}")
            time.sleep(request.seconds)
    return TaskReply(text=request.text, pid=os.getpid(), group=os.getpgid(0))
