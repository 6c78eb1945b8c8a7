"""Child processes for work that may crash, run out of memory or never end.

A forkserver with torch and transformers already imported forks one child a task, in a process group of its
own: a child costs milliseconds, its memory peak is its own, and ending it ends everything it started.
"""

from agentic_compression.execution.supervisor import Supervisor, TaskOutcome, shared_supervisor

__all__ = ["Supervisor", "TaskOutcome", "shared_supervisor"]
