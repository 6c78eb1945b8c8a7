"""Experiences as one JSON Lines file: out of one memory, and line by line into another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from agentic_compression.errors import ConfigurationError
from agentic_compression.memory.experiments import add_experiences, canonical_text, read_experiences
from agentic_compression.memory.quarantine import Quarantined, set_aside_text
from agentic_compression.memory.validation import read_experience
from agentic_compression.memory.workspace import MOST_FILE_BYTES, Workspace
from agentic_compression.records import Record
from agentic_compression.storage import write_atomically

__all__ = ["Imported", "export_experiences", "import_experiences"]

_MOST_REPORTED = 1000


class Imported(Record):
    """What became of a file's lines."""

    lines: int = Field(ge=0, description="that were not blank")
    added: int = Field(ge=0)
    known: int = Field(ge=0, description="the same measurement was remembered already")
    quarantined: int = Field(ge=0)
    reasons: tuple[Quarantined, ...] = Field(default=(), description="of the quarantined lines, the first 1,000")


def export_experiences(workspace: Workspace, path: Path) -> int:
    """Write every experience on a line of its own, by digest; returns how many.

    Raises:
        OSError: when the file cannot be written.
    """
    found = read_experiences(workspace)
    write_atomically(path, "".join(f"{canonical_text(item)}\n" for item in found.values()))
    return len(found)


def import_experiences(workspace: Workspace, path: Path) -> Imported:
    """Take in what is valid and new; every other line goes to quarantine with its number and the reason.

    Raises:
        ConfigurationError: when there is no such file.
    """
    if not path.is_file():
        raise ConfigurationError(f"no file {str(path)!r} to import; write one with 'acf memory export FILE'")
    valid, reasons, lines, bad = [], [], 0, 0
    for number, line in _lines(path):
        lines += 1
        try:
            valid.append(read_experience(line))
        except ValueError as error:
            bad += 1
            if bad <= _MOST_REPORTED:
                reasons.append(set_aside_text(workspace, f"{path.name}, line {number}", line, str(error)))
    added: tuple[str, ...] = ()
    if valid:
        with workspace.lock():
            added = add_experiences(workspace, valid)
    return Imported(
        lines=lines, added=len(added), known=len(valid) - len(added), quarantined=bad, reasons=tuple(reasons)
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the lines that are not blank; a line that is too long is cut, and read no further."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(MOST_FILE_BYTES + 2):
            number += 1
            whole = line.endswith(b"\n")
            while not whole:
                rest = file.readline(MOST_FILE_BYTES)
                whole = not rest or rest.endswith(b"\n")
            if line.strip():
                yield number, line.strip()
