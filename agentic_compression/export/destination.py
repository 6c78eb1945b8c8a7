"""Where an export goes: written beside its place under another name, and renamed once it is whole and was checked.

A process that is killed leaves a hidden folder ``.<name>.<random>.partial`` and nothing at the destination. Its lock
goes with the process, and the next export to the same place removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentic_compression.errors import ConfigurationError

__all__ = ["RECORD_NAME", "new_export", "require_free_place"]

RECORD_NAME = "export.json"
_REPLACED = "replaced"


def require_free_place(final: Path, *, force: bool) -> None:
    """Refuse a destination that holds something; with ``force``, unless it is an earlier export.

    Raises:
        ConfigurationError: with what to do.
    """
    if not final.exists() and not final.is_symlink():
        return
    if not force:
        raise ConfigurationError(
            f"{final} exists already; choose another folder with --output, or replace with --force"
        )
    if final.is_symlink() or not (final / RECORD_NAME).is_file():
        raise ConfigurationError(
            f"--force replaces earlier exports only, and {final} has no {RECORD_NAME}; remove it by hand"
        )


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
    unfinished = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".partial"))
    lock = os.open(unfinished, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield unfinished
        unfinished.chmod(0o755)
        for path in (*sorted(unfinished.rglob("*")), unfinished):
            _sync(path)
        _put(unfinished, final, force=force)
        _sync(final.parent)
    finally:
        os.close(lock)
        shutil.rmtree(unfinished, ignore_errors=True)


def _put(unfinished: Path, final: Path, *, force: bool) -> None:
    require_free_place(final, force=force)
    if not final.exists():
        unfinished.rename(final)
        return
    aside = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".partial"))
    lock = os.open(aside, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        final.rename(aside / _REPLACED)
        try:
            unfinished.rename(final)
        except BaseException:
            (aside / _REPLACED).rename(final)
            raise
    finally:
        os.close(lock)
        shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(final: Path) -> None:
    """What killed exports to this place left behind: hidden folders that no living process holds.

    An export that was moved aside and not yet replaced comes back.
    """
    for path in final.parent.iterdir():
        mine = path.name.startswith(f".{final.name}.") and path.name.endswith(".partial")
        if not mine or path.is_symlink() or not path.is_dir():
            continue
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (path / _REPLACED).is_dir() and not final.exists():
                (path / _REPLACED).rename(final)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
