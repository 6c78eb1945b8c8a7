"""Read the rows of a .jsonl, .csv or .parquet file; every problem is one line that says where."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.errors import DatasetError

__all__ = ["EXTENSIONS", "Row", "read_json", "read_jsonl", "read_rows", "read_text", "require_file"]

EXTENSIONS = (".jsonl", ".csv", ".parquet")
_UNPACKED_MOST = 1 << 28


@dataclass(frozen=True)
class Row:
    """One record of a file and where it stands, for example ``line 3``."""

    where: str
    values: dict[str, Any]


def require_file(path: Path) -> Path:
    """The path of an existing, non-empty file with a known extension.

    Raises:
        DatasetError: otherwise, with similar names when the file is missing.
    """
    if path.is_dir():
        raise DatasetError(f"{path} is a folder, a dataset is one file; name a file ending in {', '.join(EXTENSIONS)}")
    if not path.is_file():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "check the path"
        raise DatasetError(f"dataset file {path} does not exist; {hint}")
    if path.suffix.lower() not in EXTENSIONS:
        allowed = ", ".join(EXTENSIONS)
        raise DatasetError(f"a dataset file ends in {allowed}, got {path.name}; convert it to JSON lines")
    if path.stat().st_size == 0:
        raise DatasetError(f"{path} is empty; a dataset needs at least one item")
    return path


def read_rows(path: Path) -> list[Row]:
    """All rows of a dataset file; values stay as the file has them (text in CSV).

    Raises:
        DatasetError: missing, empty, not UTF-8 or malformed.
    """
    require_file(path)
    reader = {".jsonl": read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix.lower()]
    rows = reader(path)
    if not rows:
        raise DatasetError(f"{path} holds no items; a dataset needs at least one")
    return rows


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, unpacked if it is a .gz (a byte-order mark is dropped, line ends become LF).

    Raises:
        DatasetError: when it is not UTF-8, with the byte offset, or is no gzip file or unpacks to too much.
    """
    raw = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; save it as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as packed:
            raw = packed.read(_UNPACKED_MOST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is not a gzip file: {error}; get it again") from None
    if len(raw) > _UNPACKED_MOST:
        raise DatasetError(
            f"{path} unpacks to more than {_UNPACKED_MOST:,} bytes; unpack it yourself and name the file"
        )
    return raw


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; blank lines are skipped.

    Raises:
        DatasetError: with the line number.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{path} line {number} is not valid JSON: {error}; fix that line") from None
        if not isinstance(value, dict):
            raise DatasetError(f"{path} line {number} must be a JSON object, got {type(value).__name__}; fix that line")
        rows.append(Row(f"line {number}", value))
    return rows


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DatasetError: when it is not valid JSON.
    """
    try:
        return json.loads(read_text(path), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not valid JSON: {error}; get the file again") from None


def _read_csv(path: Path) -> list[Row]:
    text = read_text(path)
    if not text.strip():
        return []
    advice = "quote fields that contain commas"
    try:
        header, *lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise DatasetError(f"{path} is not valid CSV: {error}; {advice}") from None
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DatasetError(f"{path} has the column {repeated[0]!r} more than once; name every column once")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise DatasetError(f"{path} row {number} has {len(line)} fields, the header has {len(header)}; {advice}")
    return _rows(dict(zip(header, line, strict=True)) for line in lines)


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DatasetError(f"{path} is not a valid parquet file: {reason}; write it again") from None
    return _rows(table.to_pylist())


def _rows(records: Iterable[dict[Any, Any]]) -> list[Row]:
    return [
        Row(f"row {number}", {str(key): value for key, value in record.items()})
        for number, record in enumerate(records, start=1)
    ]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
