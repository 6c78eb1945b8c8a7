"""Deletes checkpoints that nothing points at any more; their recipe stays and ``acf rebuild`` makes them again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from uuid import uuid4

from agentic_compression.errors import AcfError
from agentic_compression.records import EpisodeRecord, FrontierDocument
from agentic_compression.registry import journal_of, list_versions
from agentic_compression.registry.mlflow_model import LOCATION, checkpoint_of, drop_unfinished
from agentic_compression.study.workbench import Workbench

__all__ = ["drop_dominated"]


def drop_dominated(bench: Workbench, document: FrontierDocument, records: Sequence[EpisodeRecord]) -> tuple[Path, ...]:
    """Delete this study's checkpoints that are neither on any study's frontier nor under any alias.

    What an unfinished move or an open request names stays too, and what a move by hand left, so that it can be taken
    back. Of studies that were removed, the versions that have lost their last alias since go with their checkpoints.

    While another process works on an episode nothing is deleted; a later episode does it.

    Only folders inside ``data/artifacts/checkpoints`` are ever deleted, so a user's own folder is safe.

    Returns:
        The deleted folders.
    """
    with bench.lease.alone() as alone:
        if not alone:
            return ()
        with journal_of(bench.settings).locked():  # no alias moves between the look and the deletion
            return _delete(bench, document, records)


def _delete(bench: Workbench, document: FrontierDocument, records: Sequence[EpisodeRecord]) -> tuple[Path, ...]:
    root = bench.settings.checkpoints.resolve()
    try:
        kept, digests = set(_pointed_at(bench, document)), _served_digests(bench)
    except (ValueError, AcfError):  # a file is damaged, so what it points at is not known: nothing goes
        return ()
    deleted: list[Path] = []
    for record in records:
        if record.checkpoint is None or record.checkpoint.shared:
            continue
        folder = Path(record.checkpoint.path).resolve()
        served = record.checkpoint.digest in digests
        if folder in kept or served or folder.parent != root or not folder.is_dir():
            continue
        _remove(folder, root)
        deleted.append(folder)
    deleted += _delete_orphans(bench, root, kept)
    models = bench.settings.artifacts / "models"
    drop_unfinished(models)
    _drop_dangling(models, root)
    return tuple(deleted)


def _delete_orphans(bench: Workbench, root: Path, kept: set[Path]) -> Iterable[Path]:
    """Versions of removed studies that nothing points at any more, and their checkpoints."""
    if bench.registry is None:
        return
    needed = journal_of(bench.settings, bench.registry).needed()
    for version in list_versions(bench.registry):
        if version.state != "removed" or version.aliases or version.version in needed.get(version.model, ()):
            continue
        bench.registry.delete_model_version(version.model, version.version)
        folder = Path(version.source).resolve()
        if folder not in kept and folder.parent == root and folder.is_dir():
            _remove(folder, root)
            yield folder


def _remove(folder: Path, root: Path) -> None:
    """Renamed first: a process killed while deleting leaves no half checkpoint under a valid name."""
    doomed = root / f".{folder.name}.{uuid4().hex[:8]}.partial"
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _drop_dangling(models: Path, root: Path) -> None:
    """Thin models whose stored checkpoint is gone: their links would keep its bytes; they are made again with it.

    A checkpoint elsewhere, such as the user's own folder, may only be out of reach for now: its links stay.
    """
    for location in models.glob(f"*/*/{LOCATION}"):
        stored = checkpoint_of(location.parent)
        if stored.parent.resolve() == root and root.is_dir() and not stored.is_dir():
            shutil.rmtree(location.parent)


def _served_digests(bench: Workbench) -> set[str]:
    """Of what aliases, unfinished moves and open requests name, whatever became of the versions' own folders."""
    if bench.registry is None:
        return set()
    needed = journal_of(bench.settings, bench.registry).needed()
    versions = list_versions(bench.registry)
    named = (item for item in versions if item.aliases or item.version in needed.get(item.model, ()))
    return {item.tags.get("acf.digest", "") for item in named} - {""}


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
        needed = journal_of(bench.settings, bench.registry).needed()
        for version in list_versions(bench.registry):
            if version.aliases or version.version in needed.get(version.model, ()):
                yield Path(version.source).resolve()
