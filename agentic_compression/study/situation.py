"""Between a study and the memory of earlier ones: what a planner is told, and what is remembered afterwards."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pydantic import ValidationError

from agentic_compression.memory import (
    Workspace,
    experiences_of,
    measurement,
    note_checkpoints,
    recall,
    recommend,
    refresh_knowledge,
    remember,
)
from agentic_compression.records import (
    DatasetSpec,
    EpisodeRecord,
    FrontierDocument,
    ModelSpec,
    Recalled,
    Recommended,
    Situation,
    StudyConfig,
)
from agentic_compression.spec import size_class
from agentic_compression.study.feasibility import compression_device
from agentic_compression.study.naming import short_name
from agentic_compression.study.workbench import Workbench

__all__ = ["MOST_RECALLED", "MOST_RECOMMENDED", "remember_study", "situation_of"]

MOST_RECALLED = 64
MOST_RECOMMENDED = 12  # a planner leaves out those that it cannot or need not try

_LOG = logging.getLogger(__name__)


def situation_of(config: StudyConfig, spec: ModelSpec, dataset: DatasetSpec, bench: Workbench) -> Situation:
    """What a planner may know now besides the space and the history.

    What is left of a budget is never below 0 and None where there is no budget. The study's own episodes are not
    recalled, because the planner has them as history. A memory that cannot be read recalls nothing.
    """
    records = bench.history.records(config.name) if bench.history.exists(config.name) else []
    seconds = sum(record.timings.get("total", 0.0) for record in records)
    grams = sum(record.co2_grams_spent for record in records)
    tried = {record.episode for record in records if record.episode > 0}
    situation = Situation(
        spec=spec,
        dataset=short_name(config.dataset),
        tasks=tuple(task.name for task in dataset.tasks),
        device=next(
            (record.environment.device for record in records if record.environment), compression_device(config)
        ),
        objective=config.objective,
        constraints=config.constraints,
        episodes_left=max(0, config.episodes - len(tried)),
        seconds_left=None if config.budget_hours is None else max(0.0, config.budget_hours * 3600 - seconds),
        co2_spent_grams=max(0.0, grams),
        co2_left_grams=None if config.carbon_budget_kg is None else max(0.0, config.carbon_budget_kg * 1000 - grams),
    )
    own = {measurement(item) for item in experiences_of(records, spec, config, situation.dataset)}
    try:
        recalled = recall(Workspace(bench.settings.workspace), situation, MOST_RECALLED, own)
    except OSError as error:
        _LOG.warning("nothing is recalled: %s", error)
        return situation
    return situation.model_copy(update={"recalled": recalled, "recommended": _recommended(recalled, config)})


def _recommended(recalled: Sequence[Recalled], config: StudyConfig) -> tuple[Recommended, ...]:
    best = recommend(recalled, config.constraints, MOST_RECOMMENDED)
    return tuple(Recommended(strategy=item.strategy, score=item.score, n=item.n, reasons=item.reasons) for item in best)


def remember_study(
    config: StudyConfig, document: FrontierDocument, records: Sequence[EpisodeRecord], bench: Workbench
) -> int:
    """Remember what a study has measured so far; repeating it adds nothing. Returns how many experiences are new.

    Episodes that may not be compared with the baseline are left out, because their proportions mean nothing. A study
    whose specification is not on disk waits until it is. A full disk or a memory that cannot be written is logged and
    never fails the study: its own history is elsewhere, and the next episode tries again.
    """
    workspace = Workspace(bench.settings.workspace)
    left_out = {item.episode for item in document.excluded}
    told = [record for record in records if record.episode not in left_out]
    members = frozenset(solution.episode for solution in document.solutions)
    try:
        spec = ModelSpec.model_validate_json((bench.folder(config.name) / "model_spec.json").read_text())
        added = remember(workspace, told, spec, config, short_name(config.dataset))
        note_checkpoints(workspace, config.name, records, members)
        if added:
            refresh_knowledge(workspace, size_class)
    except FileNotFoundError:
        return 0
    except (OSError, ValidationError) as error:
        _LOG.warning("study %s is not remembered: %s", config.name, error)
        return 0
    return added
