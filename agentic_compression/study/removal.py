"""Removes a study with everything that only it used."""

from __future__ import annotations

import shutil

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import FrontierDocument, Record
from agentic_compression.registry import forget_study, journal_of, recover
from agentic_compression.study.retention import drop_dominated
from agentic_compression.study.workbench import Workbench

__all__ = ["Removed", "remove_study"]


class Removed(Record):
    """How much went."""

    episodes: int
    versions: int
    checkpoints: int


def remove_study(study: str, bench: Workbench) -> Removed:
    """Remove the study's registered versions, checkpoints, runs and files, in this order.

    Raises:
        ConfigurationError: when there is no such study.
    """
    folder = bench.folder(study)
    if not folder.is_dir() and not bench.history.exists(study):
        raise ConfigurationError(f"no study {study!r} in {bench.settings.root}")
    with bench.lock(study):
        return _remove(study, bench)


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
    return Removed(episodes=len(records), versions=versions, checkpoints=len(deleted))
