"""Where memory lies on disk: the folders of ``workspace/``, its lock, and how files get into it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MOST_FILE_BYTES", "Workspace", "read_regular"]

MOST_FILE_BYTES = 1 << 16
"""A stored experience has about 1 kB; a larger file than this is none."""


@dataclass(frozen=True)
class Workspace:
    """The folders below ``workspace/``; none of them needs to exist before something is written."""

    root: Path

    @property
    def experiments(self) -> Path:
        """One JSON file an experience, named by its content digest."""
        return self.root / "experiments"

    @property
    def knowledge(self) -> Path:
        """Findings in Markdown, derived from the experiments."""
        return self.root / "knowledge"

    @property
    def checkpoints(self) -> Path:
        """What is known of the checkpoints that studies keep; no weights."""
        return self.root / "checkpoints"

    @property
    def quarantine(self) -> Path:
        """What was found damaged or not believable, each with its reason."""
        return self.root / "quarantine"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time changes the memory; released by the kernel when a process dies.

        Reading takes no lock: files appear whole or not at all.
        """
        from filelock import FileLock

        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / ".lock", timeout=600):
            yield


def read_regular(path: Path | str, most_bytes: int = MOST_FILE_BYTES) -> bytes:
    """The content of a regular file; links are not followed and pipes not waited for.

    Raises:
        ValueError: when it is no regular file or larger than ``most_bytes``, with the reason.
        OSError: when it cannot be read, for example because it is gone.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            kind = "a symbolic link" if error.errno == errno.ELOOP else "a socket or pipe"
            raise ValueError(f"it is {kind}; memory is made of regular files") from None
        raise
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no regular file; memory is made of regular files")
        if facts.st_size > most_bytes:
            raise ValueError(f"it has {facts.st_size:,} bytes, at most {most_bytes:,} are read")
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read(most_bytes)
    finally:
        os.close(handle)
