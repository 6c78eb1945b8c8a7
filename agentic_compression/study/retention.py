"""Deletes checkpoints that nothing points at any more; their recipe stays and ``acf rebuild`` makes them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

from agentic_compression.records import EpisodeRecord, FrontierDocument
from agentic_compression.registry import list_versions
from agentic_compression.study.workbench import Workbench

__all__ = ["drop_dominated"]


def drop_dominated(bench: Workbench, document: FrontierDocument, records: Sequence[EpisodeRecord]) -> tuple[Path, ...]:
    """Delete this study's checkpoints that are neither on any study's frontier nor under any alias.

    While another process works on an episode nothing is deleted; a later episode does it.

    Only folders inside ``data/artifacts/checkpoints`` are ever deleted, so a user's own folder is safe.

    Returns:
        The deleted folders.
    """
    with bench.lease.alone() as alone:
        return _delete(bench, document, records) if alone else ()


def _delete(bench: Workbench, document: FrontierDocument, records: Sequence[EpisodeRecord]) -> tuple[Path, ...]:
    root = bench.settings.checkpoints.resolve()
    try:
        kept = set(_pointed_at(bench, document))
    except ValueError:  # another study's file is damaged: what it points at is not known, so nothing goes
        return ()
    deleted = []
    for record in records:
        if record.checkpoint is None or record.checkpoint.shared:
            continue
        folder = Path(record.checkpoint.path).resolve()
        if folder in kept or folder.parent != root or not folder.is_dir():
            continue
        # Renamed first: a process killed while deleting leaves no half checkpoint under a valid name.
        doomed = root / f".{folder.name}.{uuid4().hex[:8]}.partial"
        folder.rename(doomed)
        shutil.rmtree(doomed)
        deleted.append(folder)
    return tuple(deleted)


def _pointed_at(bench: Workbench, document: FrontierDocument) -> Iterable[Path]:
    for solution in document.solutions:
        if solution.checkpoint:
            yield Path(solution.checkpoint).resolve()
    for path in bench.settings.experiments.glob("*/pareto_frontier.json"):
        if path.parent.name == document.study:
            continue
        for solution in json.loads(path.read_text()).get("solutions", []):
            if solution.get("checkpoint"):
                yield Path(solution["checkpoint"]).resolve()
    if bench.registry is not None:
        for version in list_versions(bench.registry):
            if version.aliases:
                yield Path(version.source).resolve()
