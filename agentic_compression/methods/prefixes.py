"""Results of a strategy's first stages, kept so that strategies that begin alike share the work.

They lie beside the checkpoints in ``prefixes/<content key>``, a cache that may be deleted at any time. When they take
more than the limit, what was not used for longest goes; nothing that was used within the last hour does, since another
process may be reading it.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from uuid import uuid4

from agentic_compression.storage import folder_bytes

__all__ = ["PREFIXES", "make_room", "stored_prefix"]

PREFIXES = "prefixes"
_IN_USE_SECONDS = 3600.0


def stored_prefix(checkpoints_root: Path, key: str) -> Path | None:
    """The folder of a stored result with this content key, a whole strategy's or a prefix's; marks it as used."""
    for folder in (checkpoints_root / key, checkpoints_root / PREFIXES / key):
        if folder.is_dir():
            if folder.parent.name == PREFIXES:
                os.utime(folder)
            return folder
    return None


def make_room(checkpoints_root: Path, needed: int, limit: int) -> bool:
    """Delete prefixes that were not used lately until ``needed`` more bytes fit; False when they cannot.

    Args:
        checkpoints_root: folder of the checkpoints.
        needed: bytes of the prefix to be stored.
        limit: bytes that all prefixes together may take.
    """
    root = checkpoints_root / PREFIXES
    folders = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    sizes = {path: folder_bytes(path) for path in folders}
    last_used = {path: path.stat().st_mtime for path in folders}
    total = sum(sizes.values())
    for path in sorted(folders, key=lambda path: last_used[path]):
        if total + needed <= limit:
            break
        if time.time() - last_used[path] < _IN_USE_SECONDS:
            break
        doomed = root / f".{path.name}.{uuid4().hex[:8]}.partial"
        path.rename(doomed)
        shutil.rmtree(doomed)
        total -= sizes[path]
    return total + needed <= limit
