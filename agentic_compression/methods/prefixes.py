"""Results of a strategy's first stages, kept so that strategies that begin alike share the work.

They lie beside the checkpoints in ``prefixes/<content key>``, a cache that may be deleted at any time. When they take
more than the limit, what was not used for longest goes; nothing that was used within the last hour does, since another
process may be reading it.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from agentic_compression.storage import folder_bytes

__all__ = ["PREFIXES", "discard", "make_room", "promote", "set_aside", "stored_prefix"]

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
    if needed > limit:
        return False
    root = checkpoints_root / PREFIXES
    found = [_seen(path) for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []
    kept = sorted(item for item in found if item is not None)
    total = sum(size for _, _, size in kept)
    for last_used, path, size in kept:
        if total + needed <= limit or time.time() - last_used < _IN_USE_SECONDS:
            break
        discard(path)
        total -= size
    return total + needed <= limit


def discard(folder: Path) -> None:
    """Delete a stored prefix: renamed first, so that no half of it stays under a valid name."""
    shutil.rmtree(set_aside(folder), ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Take a damaged result out of the way, to be built again; ``acf clean --caches`` deletes what is set aside."""
    aside = folder.parent / f".{folder.name}.{uuid4().hex[:8]}.partial"
    with suppress(FileNotFoundError):  # another process was first
        folder.rename(aside)
    return aside


def promote(checkpoints_root: Path, key: str) -> None:
    """Make a stored prefix the checkpoint that it is when the strategy turns out to end there."""
    prefix, final = checkpoints_root / PREFIXES / key, checkpoints_root / key
    if prefix.is_dir() and not final.exists():
        prefix.rename(final)


def _seen(folder: Path) -> tuple[float, Path, int] | None:
    """When it was last used, the folder, its bytes; None when another process has just taken it away."""
    try:
        return folder.stat().st_mtime, folder, folder_bytes(folder)
    except OSError:
        return None
