"""Removes a study with everything that only it used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import EpisodeRecord, FrontierDocument, Record
from agentic_compression.registry import forget_study, journal_of, list_versions, recover
from agentic_compression.study.retention import drop_dominated
from agentic_compression.study.workbench import Workbench

__all__ = ["Removed", "remove_study", "require_study"]


class Removed(Record):
    """How much went, and what stays."""

    episodes: int
    versions: int
    checkpoints: int
    kept: tuple[str, ...] = Field(default=(), description="in words, what stays and why")


def remove_study(study: str, bench: Workbench) -> Removed:
    """Remove the study's registered versions, checkpoints, runs and files, in this order.

    Raises:
        ConfigurationError: when there is no such study.
    """
    require_study(study, bench)
    with bench.lock(study):
        return _remove(study, bench)


def require_study(study: str, bench: Workbench) -> None:
    """That there is such a study.

    Raises:
        ConfigurationError: with those that there are.
    """
    if bench.folder(study).is_dir() or bench.history.exists(study):
        return
    known = ", ".join(sorted(found.name for found in bench.settings.experiments.glob("[!.]*") if found.is_dir()))
    raise ConfigurationError(f"no study {study!r} in {bench.settings.root}; studies here: {known or 'none yet'}")


def _remove(study: str, bench: Workbench) -> Removed:
    folder = bench.folder(study)
    records = bench.history.records(study) if bench.history.exists(study) else []
    versions = 0
    if bench.registry is not None:
        journal = journal_of(bench.settings, bench.registry)
        with journal.locked():  # no alias is set on a version while it is deleted
            recover(bench.registry, journal)
            versions = forget_study(bench.registry, study)
    nothing = FrontierDocument(study=study, objectives=(), baseline=None, reference_point=None, hypervolume=0.0)
    deleted = drop_dominated(bench, nothing, records)
    bench.history.forget(study)
    shutil.rmtree(folder, ignore_errors=True)
    return Removed(
        episodes=len(records), versions=versions, checkpoints=len(deleted), kept=tuple(_kept(study, records, bench))
    )


def _kept(study: str, records: Sequence[EpisodeRecord], bench: Workbench) -> Iterator[str]:
    """Versions under an alias with their checkpoints, and checkpoints that something else needs."""
    root, held = bench.settings.checkpoints.resolve(), set[Path]()
    for version in list_versions(bench.registry) if bench.registry is not None else ():
        if version.study != study:
            continue
        source = Path(version.source).resolve()
        held.add(source)
        what = "version and checkpoint" if source.is_dir() else "version"
        aliases = ", ".join(version.aliases) or "no alias any more"
        yield f"{version.name} stays, {what}: held by {aliases}; it goes once no alias points at it"
    stored = {
        Path(item.checkpoint.path).resolve() for item in records if item.checkpoint and not item.checkpoint.shared
    }
    left = [folder for folder in stored - held if folder.parent == root and folder.is_dir()]
    if left:
        yield (
            f"{len(left)} checkpoint{'s' if len(left) > 1 else ''} stay{'' if len(left) > 1 else 's'}: another study, "
            "an alias or an open move of one needs the same, or another run is at work"
        )
