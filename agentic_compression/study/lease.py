"""Keeps stored checkpoints from being deleted while an episode uses them.

Every process that compresses or evaluates holds a shared lock on one file; retention deletes only when it gets the
lock alone, and otherwise leaves the deleting to a later episode. The kernel releases the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CheckpointLease"]


class CheckpointLease:
    """One process's lease on all checkpoints below a folder."""

    def __init__(self, root: Path) -> None:
        self._path = root / ".lease"
        self._handle: int | None = None

    def hold(self) -> None:
        """Take the shared lock, if it is not held yet; waits while another process deletes."""
        if self._handle is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def release(self) -> None:
        """Give the shared lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """True inside when no other process holds a lease; this process's own is given back first."""
        self.release()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)
