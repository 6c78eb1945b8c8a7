"""Sets aside what is damaged or not believable, with the reason beside it; nothing is deleted and nothing fails."""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from agentic_compression.memory.workspace import Workspace, read_regular
from agentic_compression.records import Record
from agentic_compression.storage import write_atomically, write_record

__all__ = ["Quarantined", "list_quarantined", "set_aside", "set_aside_text"]

_REASON = ".reason.json"
_MOST_KEPT_BYTES = 1 << 16


class Quarantined(Record):
    """One thing set aside."""

    origin: str = Field(description="file name, or file and line, as it was found")
    kept_as: str = Field(description="name in workspace/quarantine")
    reason: str
    at: str = Field(description="UTC, ISO 8601")


def set_aside(workspace: Workspace, path: Path, reason: str) -> Quarantined | None:
    """Move a file, link or folder into quarantine; None when another process was faster or it cannot be moved.

    A link is moved itself, not what it points at. The new name is made of letters and digits of the old one, so that
    no name leads elsewhere.
    """
    try:
        kept_as = _name(path.name, os.fsencode(path.name) + str(path.lstat().st_mtime_ns).encode())
        found = Quarantined(origin=_shown(path.name), kept_as=kept_as, reason=_shown(reason), at=_now())
        write_record(workspace.quarantine / f"{kept_as}{_REASON}", found)
        path.rename(workspace.quarantine / kept_as)
    except OSError:
        return None
    return found


def set_aside_text(workspace: Workspace, origin: str, text: bytes, reason: str) -> Quarantined:
    """Keep a line that could not be taken in; of a very long one its beginning."""
    kept_as = _name(origin, text)
    found = Quarantined(origin=_shown(origin), kept_as=kept_as, reason=_shown(reason), at=_now())
    write_atomically(workspace.quarantine / kept_as, text[:_MOST_KEPT_BYTES])
    write_record(workspace.quarantine / f"{kept_as}{_REASON}", found)
    return found


def list_quarantined(workspace: Workspace) -> tuple[Quarantined, ...]:
    """Everything that has a reason beside it, by name; a damaged reason file is passed over."""
    found = []
    for path in sorted(workspace.quarantine.glob(f"*{_REASON}")):
        try:
            found.append(Quarantined.model_validate_json(read_regular(path)))
        except (OSError, ValueError, ValidationError):
            continue
    return tuple(found)


def _name(origin: str, content: bytes) -> str:
    readable = re.sub(r"[^A-Za-z0-9]+", "-", origin).strip("-")[:60] or "unnamed"
    return f"{readable}-{hashlib.sha256(content).hexdigest()[:8]}"


def _shown(text: str) -> str:
    """As JSON would escape it: no control characters, no halves of characters, of bearable length."""
    return json.dumps(text[:500])[1:-1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
