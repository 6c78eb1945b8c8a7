"""The experiences on disk: one JSON file each, named by the digest of its content, written once and never changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from agentic_compression.memory.quarantine import set_aside
from agentic_compression.memory.validation import problem_with, read_experience
from agentic_compression.memory.workspace import Workspace, read_regular
from agentic_compression.records import Experience, content_digest
from agentic_compression.storage import sync

__all__ = ["add_experiences", "canonical_text", "delete_experiences", "measurement", "read_experiences"]

_NAME = re.compile(r"([0-9a-f]{16})\.json")
_DURABLE_BATCH = 64
"""So many files are each forced to disk; a larger import is not, because its source is still there."""


def canonical_text(experience: Experience) -> str:
    """The text whose SHA-256 (first 16 hex digits) is ``content_digest`` of the experience."""
    value = experience.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def measurement(experience: Experience) -> tuple[str, int, str, str]:
    """What makes two experiences the same measurement, whatever else is written in them."""
    return experience.study, experience.episode, experience.strategy.label, experience.at


def read_experiences(workspace: Workspace) -> dict[str, Experience]:
    """Every experience by its digest, in the order of the digests.

    What is damaged or not believable is moved to quarantine and left out. Files whose name begins with a dot are
    left over from writers that were killed, and passed over.
    """
    found: dict[str, Experience] = {}
    folder = str(workspace.experiments)
    for name in sorted(_names(workspace)):
        try:
            digest = _digest_in(name)
            content = read_regular(f"{folder}/{name}")
            experience = read_experience(content)
            _require_match(digest, content, experience)
        except ValueError as error:
            set_aside(workspace, workspace.experiments / name, str(error))
        except OSError:  # gone since it was listed, or not ours to read
            continue
        else:
            found[digest] = experience
    return found


def add_experiences(workspace: Workspace, experiences: Iterable[Experience]) -> tuple[str, ...]:
    """Write those that are not there yet; the caller holds the workspace's lock.

    The same measurement is kept once, even when it is written differently now.

    Returns:
        Digests of the new files.

    Raises:
        ValueError: for an experience that ``read_experiences`` would refuse.
    """
    new = {content_digest(experience): experience for experience in experiences}
    for digest in [digest for digest in new if (workspace.experiments / f"{digest}.json").exists()]:
        del new[digest]
    if not new:
        return ()
    workspace.experiments.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(workspace)
    known = {measurement(experience) for experience in read_experiences(workspace).values()}
    added = []
    for digest, experience in new.items():
        if problem := problem_with(experience):
            raise ValueError(f"episode {experience.episode} of {experience.study}: {problem}")
        if measurement(experience) in known:
            continue
        known.add(measurement(experience))
        text = canonical_text(experience) + "\n"
        _write(workspace.experiments / f"{digest}.json", text.encode(), durable=len(new) <= _DURABLE_BATCH)
        added.append(digest)
    sync(workspace.experiments)
    return tuple(added)


def delete_experiences(workspace: Workspace, digests: Iterable[str]) -> int:
    """Delete these files; the caller holds the workspace's lock. Returns how many were there."""
    deleted = 0
    for digest in digests:
        path = workspace.experiments / f"{digest}.json"
        if _NAME.fullmatch(path.name) and path.exists():
            path.unlink()
            deleted += 1
    if deleted:
        sync(workspace.experiments)
    return deleted


def _names(workspace: Workspace) -> list[str]:
    try:
        return [name for name in os.listdir(workspace.experiments) if not name.startswith(".")]  # noqa: PTH208
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        set_aside(workspace, workspace.experiments, "experiments must be a folder")
        return []


def _digest_in(name: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError("its name is not the digest of an experience with .json")
    return match[1]


def _require_match(digest: str, content: bytes, experience: Experience) -> None:
    """Compare the name with the bytes, and only where somebody has reformatted them with the content."""
    if hashlib.sha256(content.removesuffix(b"\n")).hexdigest()[:16] == digest:
        return
    actual = content_digest(experience)
    if actual != digest:
        raise ValueError(f"its content has the digest {actual}, its name says {digest}: it was changed or damaged")


def _write(path: Path, content: bytes, *, durable: bool) -> None:
    """A whole file under its name or none; one that is not durable may be lost, never half there, when power fails."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _remove_unfinished(workspace: Workspace) -> None:
    """Whoever holds the lock is the only writer, so every temporary file is left over."""
    for path in workspace.experiments.glob(".*.json.*.tmp"):
        path.unlink(missing_ok=True)
