"""What is known of the checkpoints that studies keep: where they lie, what made them, how they did. No weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field, ValidationError

from agentic_compression.memory.quarantine import set_aside
from agentic_compression.memory.workspace import Workspace, read_regular
from agentic_compression.records import EpisodeRecord, Objectives, Record, Strategy
from agentic_compression.records.study import STUDY_NAME
from agentic_compression.storage import write_record

__all__ = ["KeptCheckpoint", "forget_checkpoints", "note_checkpoints", "read_checkpoints"]


class KeptCheckpoint(Record):
    """One stored checkpoint of a study."""

    study: str = Field(pattern=STUDY_NAME)
    episode: int = Field(ge=0)
    path: str = Field(description="absolute folder")
    digest: str
    size_bytes: int = Field(gt=0, description="on disk, of what must be shipped")
    strategy: Strategy
    objectives: Objectives | None = None
    on_frontier: bool = False


def note_checkpoints(
    workspace: Workspace, study: str, records: Iterable[EpisodeRecord], members: frozenset[int] = frozenset()
) -> int:
    """Make ``checkpoints/<study>`` say what the study keeps now; the user's own folder is not among it.

    Args:
        workspace: where memory lies.
        study: name of the study.
        records: its finished episodes.
        members: episodes on its frontier.

    Returns:
        How many checkpoints it keeps.
    """
    kept = {
        record.episode: KeptCheckpoint(
            study=study,
            episode=record.episode,
            path=record.checkpoint.path,
            digest=record.checkpoint.digest,
            size_bytes=record.checkpoint.size_bytes,
            strategy=record.strategy,
            objectives=record.objectives,
            on_frontier=record.episode in members,
        )
        for record in records
        if record.checkpoint and not record.checkpoint.shared and Path(record.checkpoint.path).is_dir()
    }
    with workspace.lock():
        known = {item.episode: item for item in read_checkpoints(workspace) if item.study == study}
        for episode in known.keys() - kept.keys():
            _path(workspace, study, episode).unlink(missing_ok=True)
        for episode, item in kept.items():
            if known.get(episode) != item:
                write_record(_path(workspace, study, episode), item)
    return len(kept)


def read_checkpoints(workspace: Workspace) -> tuple[KeptCheckpoint, ...]:
    """Everything noted, by study and episode; what is damaged or lies under another name is moved to quarantine."""
    found = []
    for path in sorted(workspace.checkpoints.glob("*/*")):
        if path.name.startswith(".") or path.parent.is_symlink():
            continue
        try:
            item = KeptCheckpoint.model_validate_json(read_regular(path))
            if path != _path(workspace, item.study, item.episode):
                raise ValueError(f"it is about episode {item.episode} of {item.study} and lies elsewhere")
        except (ValidationError, ValueError) as error:
            set_aside(workspace, path, " ".join(str(error).split())[:300])
        except OSError:
            continue
        else:
            found.append(item)
    return tuple(found)


def forget_checkpoints(workspace: Workspace, study: str | None = None) -> int:
    """Forget what a study, or every study, keeps; the checkpoints themselves stay. The caller holds the lock."""
    if study is not None and not re.fullmatch(STUDY_NAME, study):
        return 0
    doomed = [item for item in read_checkpoints(workspace) if study in {None, item.study}]
    for item in doomed:
        _path(workspace, item.study, item.episode).unlink(missing_ok=True)
    return len(doomed)


def _path(workspace: Workspace, study: str, episode: int) -> Path:
    return workspace.checkpoints / study / f"{episode:03d}.json"
