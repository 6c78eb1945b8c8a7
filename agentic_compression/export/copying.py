"""Files of a checkpoint into an export: independent copies, and nothing that a link brings in from elsewhere."""

from __future__ import annotations

import fcntl
import re
import shutil
from pathlib import Path

from agentic_compression.errors import ModelError

__all__ = ["LEGAL_NAME", "copy_file", "legal_files", "require_own_files"]

_FICLONE = 0x40049409  # of Linux: share the blocks until one of the files is written to
LEGAL_NAME = re.compile(r"(?i)(licen[cs]e|notice|use_policy)(\.txt|\.md)?")
_FOLDERS = ("additional_chat_templates",)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content; where the file system can, both share the blocks until one of them is written to."""
    with source.open("rb") as read, target.open("wb") as write:
        try:
            fcntl.ioctl(write, _FICLONE, read.fileno())
        except OSError:  # another file system, or one that cannot
            pass
        else:
            return
    shutil.copyfile(source, target)


def legal_files(folder: Path | None) -> list[Path]:
    """The texts that go with a model's weights: LICENSE, NOTICE and USE_POLICY in its folder.

    Raises:
        ModelError: when one is a link that leads elsewhere.
    """
    if folder is None or not folder.is_dir():
        return []
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and LEGAL_NAME.fullmatch(path.name)]
    for path in found:
        _require_own(path, folder)
    return found


def require_own_files(folder: Path) -> None:
    """Refuse links by which a checkpoint folder would bring files from elsewhere into an export.

    Links inside the folder stand, and those of a Hugging Face cache, which lead from a snapshot to its own blobs.

    Raises:
        ModelError: with the link's name.
    """
    for place in (folder, *(folder / name for name in _FOLDERS)):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            _require_own(path, folder)


def _require_own(path: Path, folder: Path) -> None:
    if not path.is_symlink():
        return
    home, target = folder.resolve(), path.resolve()
    cache = next((parent for parent in home.parents if parent.name.startswith("models--")), None)
    blobs = cache / "blobs" if cache is not None and home.parent == cache / "snapshots" else None
    if target.is_relative_to(home) or (blobs is not None and target.is_relative_to(blobs)):
        return
    raise ModelError(
        f"{path} is a link that leads out of its checkpoint folder, and an export takes in no files from elsewhere; "
        "put the file itself there"
    )
