"""Forgetting: by study, by digest, by age, or everything."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta

from pydantic import Field

from agentic_compression.memory.checkpoints import forget_checkpoints
from agentic_compression.memory.experiments import delete_experiences
from agentic_compression.memory.validation import moment
from agentic_compression.memory.workspace import Workspace
from agentic_compression.records import Experience, Record

__all__ = ["Forgotten", "forget", "to_forget"]


class Forgotten(Record):
    """How much went."""

    experiences: int = Field(ge=0)
    checkpoints: int = Field(default=0, ge=0, description="notes about checkpoints; the checkpoints themselves stay")


def to_forget(
    experiences: Mapping[str, Experience],
    study: str | None = None,
    digest: str | None = None,
    older_than_days: float | None = None,
    now: datetime | None = None,
) -> tuple[str, ...]:
    """Digests of the experiences that all given conditions name; all of them without a condition.

    Args:
        experiences: by digest.
        study: name of a study.
        digest: of an experience, or of the model it was made with.
        older_than_days: measured longer ago; what does not say when is not older.
        now: the present, for the age.
    """
    before = None
    if older_than_days is not None:
        before = (now or datetime.now(UTC)) - timedelta(days=older_than_days)
    return tuple(
        name
        for name, item in experiences.items()
        if study in {None, item.study}
        and digest in {None, name, item.digest}
        and (before is None or ((when := moment(item.at)) is not None and when < before))
    )


def forget(
    workspace: Workspace, digests: Collection[str], study: str | None = None, *, everything: bool = False
) -> Forgotten:
    """Delete experiences, and with a study or everything the notes about checkpoints; everything empties quarantine.

    Args:
        workspace: where memory lies.
        digests: of the experiences.
        study: its notes about checkpoints go too.
        everything: all notes about checkpoints and what is in quarantine go too.
    """
    with workspace.lock():
        gone = delete_experiences(workspace, digests)
        noted = forget_checkpoints(workspace, study) if study is not None or everything else 0
        if everything:
            shutil.rmtree(workspace.quarantine, ignore_errors=True)
    return Forgotten(experiences=gone, checkpoints=noted)
