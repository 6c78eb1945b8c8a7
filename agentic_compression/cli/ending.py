"""What ``acf run`` says when it ends: what this run added, which aliases it moved, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from agentic_compression.errors import ModelError
from agentic_compression.records import Record

if TYPE_CHECKING:
    from collections.abc import Collection

    from agentic_compression.records import FinalResults, StudyConfig
    from agentic_compression.study import Workbench

__all__ = ["AliasMove", "alias_moves", "closing_line", "final_json", "known_moves"]

_MORE = "--episodes +N"
_ENDINGS = {  # reason: in words, and what makes the study go on
    "max_episodes": ("every episode asked for is recorded", _MORE),
    "converged": ("converged", _MORE),
    "time_budget": ("the time budget is spent", "a larger --budget-hours"),
    "carbon_budget": ("the carbon budget is spent", "a larger --carbon-budget-kg"),
    "target_met": ("the target is met", "a larger target_hypervolume in the study file"),
    "planner_end": ("the planner has nothing left that it would try", "another --planner, such as random"),
    "search_space_exhausted": ("no strategies left to try", "a larger --max-stages"),
}


class AliasMove(Record):
    """An alias that a run moved, through all the versions that held it meanwhile."""

    model: str
    alias: str
    versions: tuple[str, ...] = Field(description="from the one before the run to the one now; empty: none")
    back: str = Field(description="command that takes the last step back, or why none does; empty: none held it before")

    def __str__(self) -> str:
        steps = " → ".join(version or "none" for version in self.versions)
        return f"{self.alias} {steps}{f'; back: {self.back}' if self.back else ''}"


def known_moves(bench: Workbench, study: StudyConfig) -> frozenset[str]:
    """Ids of the moves that the study's registered model has seen so far."""
    from agentic_compression.registry import journal_of
    from agentic_compression.study.promotion import model_of

    if bench.registry is None:
        return frozenset()
    return frozenset(entry.id for entry in journal_of(bench.settings, bench.registry).moves(model_of(study)))


def alias_moves(bench: Workbench, study: StudyConfig, known: Collection[str]) -> list[AliasMove]:
    """Aliases that the study has moved since; one that is back where it was is left out.

    Args:
        bench: with the registry and its journal.
        study: whose frontier the aliases followed.
        known: moves from before (see ``known_moves``).
    """
    from agentic_compression.registry import journal_of
    from agentic_compression.study.promotion import model_of

    if bench.registry is None:
        return []
    model, paths = model_of(study), dict[str, list[str]]()
    for entry in journal_of(bench.settings, bench.registry).moves(model):
        if entry.id not in known and entry.action == "follow" and entry.study == study.name:
            for alias, version in entry.after.items():
                paths.setdefault(alias, [entry.before.get(alias, "")]).append(version)
    return [
        AliasMove(model=model, alias=alias, versions=tuple(path), back=_way_back(bench, model, alias, path[-2]))
        for alias, path in paths.items()
        if path[0] != path[-1]
    ]


def closing_line(results: FinalResults, folder: Path, added: int | None = None) -> str:
    """What happened, where it is, the next command.

    Args:
        results: of the study.
        folder: of the study.
        added: episodes that are recorded now and were not when the run began; None: not known.
    """
    reason = results.termination_reason
    if reason == "interrupted" and not results.episodes_run:
        return "interrupted before the baseline was measured: nothing is recorded; next: the same command again"
    if reason in _ENDINGS and added == 0:
        words, more = _ENDINGS[reason]
        number = _counted(max(results.episodes_run - 1, 0), "episode")
        return f"nothing run: {words} after {number}; for more: {more}; found so far: acf frontier {results.study}"
    ending = {"interrupted": "interrupted", None: "stopped"}.get(reason, f"done ({reason})")
    following = "the same command again" if reason == "interrupted" else f"acf frontier {results.study}"
    counts = ", ".join(f"{number} {status}" for status, number in results.episodes_by_status.items())
    new = f", {added} of them new" if added is not None and added < results.episodes_run else ""
    return (
        f"{ending}: {_counted(results.episodes_run, 'episode')} ({counts}){new}, {len(results.solutions)} "
        f"Pareto-optimal, {results.energy_kwh * 1000:.3g} Wh ({results.energy_source}); "
        f"see {folder}/pareto_visualization.html; next: {following}"
    )


def final_json(results: FinalResults, added: int, moves: Collection[AliasMove]) -> dict[str, Any]:
    """``final_results.json`` and what of it is this run's."""
    told = [move.model_dump(mode="json") for move in moves]
    return {**json.loads(results.model_dump_json()), "episodes_added": added, "alias_moves": told}


def _way_back(bench: Workbench, model: str, alias: str, version: str) -> str:
    from agentic_compression.registry import require_usable

    if not version or bench.registry is None:
        return ""
    try:
        require_usable(bench.registry, model, version)
    except ModelError as error:
        return f"none now, {error}"
    return f"acf registry rollback {model} --alias {alias}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
