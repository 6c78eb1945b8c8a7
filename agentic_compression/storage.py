"""Files that survive a crash: atomic writes, content digests of folders, confined paths."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import Record

__all__ = [
    "confined",
    "digest_of_files",
    "folder_bytes",
    "read_json_lines",
    "sync",
    "sync_tree",
    "write_atomically",
    "write_record",
]

_CHUNK = 1 << 20


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a whole file or none of it: temporary name in the same folder, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's names: what was made, renamed or removed in it.

    Raises:
        OSError: when it cannot be read, or the disk does not take it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until the disk has a folder with everything below it; the name of the folder itself is its parent's.

    Raises:
        OSError: as for :func:`sync`.
    """
    for path in (*sorted(folder.rglob("*")), folder):
        sync(path)


def write_record(path: Path, record: Record) -> None:
    """Write a record as indented JSON, atomically."""
    write_atomically(path, record.model_dump_json(indent=2) + "\n")


def digest_of_files(*paths: Path) -> str:
    """SHA-256 (first 16 hex digits) over names and contents, in the order of the sorted names."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda item: item.name):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def read_json_lines(path: Path) -> list[Any]:
    """The values of a JSON-lines file (UTF-8); blank lines are skipped.

    Only a line feed ends a line: ``str.splitlines`` would also cut at U+2028 or U+0085 inside a text.

    Raises:
        OSError: when it cannot be read.
        ValueError: when a line is not JSON, or the file is not UTF-8.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def folder_bytes(folder: Path) -> int:
    """Bytes of all regular files below a folder; links are not followed."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def confined(root: Path, *parts: str) -> Path:
    """``root`` joined with parts from outside, refused when it leaves ``root``.

    Raises:
        ConfigurationError: when the result lies outside ``root``.
    """
    path = root.joinpath(*parts).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ConfigurationError(f"a path must stay inside {root}, got {'/'.join(parts)!r}")
    return path
