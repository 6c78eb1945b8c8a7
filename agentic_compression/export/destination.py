"""Where an export goes: written beside its place under another name, and renamed once it is whole and was checked.

A process that is killed leaves a hidden folder ``.<name>.<random>.export-partial`` and nothing at the destination. Its
lock goes with the process, and the next export to the same place removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import ExportRecord
from agentic_compression.storage import sync, sync_tree

__all__ = ["RECORD_NAME", "new_export", "require_free_place"]

RECORD_NAME = "export.json"
_REPLACED = "replaced"
_SUFFIX = ".export-partial"
_NAMED = 5


def require_free_place(final: Path, *, force: bool) -> None:
    """Refuse a destination that holds something; with ``force``, unless it is an earlier export and nothing else.

    Raises:
        ConfigurationError: with what to do.
    """
    if not final.exists() and not final.is_symlink():
        return
    if not force:
        raise ConfigurationError(
            f"{final} exists already; choose another folder with --output, or replace with --force"
        )
    record = None if final.is_symlink() else _record(final / RECORD_NAME)
    if record is None:
        raise ConfigurationError(
            f"--force replaces earlier exports only, and {final} has no {RECORD_NAME} of one; remove it by hand"
        )
    extra = _extra(final, record)
    if extra:
        more = f" and {len(extra) - _NAMED} more" if len(extra) > _NAMED else ""
        raise ConfigurationError(
            f"--force replaces earlier exports only, and {final} holds what the export there did not write: "
            f"{', '.join(extra[:_NAMED])}{more}; move it away first, or choose another folder with --output"
        )


def _record(path: Path) -> ExportRecord | None:
    try:
        return ExportRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _extra(folder: Path, record: ExportRecord) -> list[str]:
    """What lies in an export's folder and is not the export's, folders of its own files left out."""
    own = {Path(name) for name in (*record.files, RECORD_NAME)}
    own |= {parent for path in own for parent in path.parents}
    return sorted(str(found) for path in folder.rglob("*") if (found := path.relative_to(folder)) not in own)


@contextmanager
def new_export(final: Path, *, force: bool) -> Iterator[Path]:
    """A temporary sibling to write into, which becomes ``final`` when the block ends without an error.

    Args:
        final: the folder to create.
        force: replace an earlier export there, once the new one is whole.

    Raises:
        ConfigurationError: when the place is taken, also by another process meanwhile.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(final)
    require_free_place(final, force=force)
    with _held_folder(final) as unfinished:
        try:
            yield unfinished
            unfinished.chmod(0o755)
            sync_tree(unfinished)
            _put(unfinished, final, force=force)
            sync(final.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _held_folder(final: Path) -> Iterator[Path]:
    """A new hidden folder beside ``final`` that other exports leave alone while the block runs."""
    while True:
        path = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=_SUFFIX))
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another export took it for a leftover before it was locked
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, path):
                yield path
                return
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open folder is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _put(unfinished: Path, final: Path, *, force: bool) -> None:
    require_free_place(final, force=force)
    if not final.exists():
        unfinished.rename(final)
        return
    with _held_folder(final) as aside:
        try:
            final.rename(aside / _REPLACED)
            unfinished.rename(final)
        finally:
            _settle(aside, final)


def _settle(aside: Path, final: Path) -> None:
    """An export that was moved aside and not replaced comes back; one that was replaced goes."""
    if (aside / _REPLACED).is_dir() and not final.exists():
        (aside / _REPLACED).rename(final)
    if final.exists() or not (aside / _REPLACED).exists():
        shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(final: Path) -> None:
    """What killed exports to this place left behind: hidden folders that no living process holds."""
    ours = re.compile(rf"\.{re.escape(final.name)}\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}")
    for path in list(final.parent.iterdir()):
        if not ours.fullmatch(path.name) or path.is_symlink():
            continue
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, path):
                _settle(path, final)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)
