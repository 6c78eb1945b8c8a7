"""Everything that planning and the sub-agents look at: the study, the wish, the model, the methods, the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from agentic_compression.agent.wish import Wish
from agentic_compression.execution import shared_supervisor
from agentic_compression.frontier import comparable
from agentic_compression.planning.grid import canonical
from agentic_compression.records import (
    Constraint,
    DatasetSpec,
    EpisodeRecord,
    ModelSpec,
    Objectives,
    SearchSpace,
    Situation,
    Strategy,
    StudyConfig,
)
from agentic_compression.settings import get_settings
from agentic_compression.study import Workbench, infer_model_spec, open_workbench
from agentic_compression.study.episode import dataset_of, offered_space
from agentic_compression.study.situation import situation_of
from agentic_compression.study.workbench import study_folder
from agentic_compression.tracking import History

__all__ = ["Desk", "bench_for_planning", "open_desk"]


@dataclass(frozen=True)
class Desk:
    """One study as its agents see it.

    Args:
        config: the study, with the constraints the user gave by hand alone; see ``settled``.
        wish: what the objective asks for besides.
        spec: of the uncompressed model.
        dataset: resolved.
        space: methods that run here, with the study's number of stages.
        bench: history, settings, child processes.
    """

    config: StudyConfig
    wish: Wish
    spec: ModelSpec
    dataset: DatasetSpec
    space: SearchSpace
    bench: Workbench

    @property
    def healing_space(self) -> SearchSpace:
        """The same with one stage more, for healing between two others."""
        return self.space.model_copy(update={"max_stages": self.space.max_stages + 1})

    def records(self) -> list[EpisodeRecord]:
        """Everything recorded of the study that may be compared."""
        history = self.bench.history
        return list(comparable(history.records(self.config.name))) if history.exists(self.config.name) else []

    def record_of(self, strategy: Strategy, records: Sequence[EpisodeRecord] | None = None) -> EpisodeRecord | None:
        """What is recorded of a strategy, whatever came of it."""
        space, history = self.healing_space, self.bench.history
        if records is None:
            records = history.records(self.config.name) if history.exists(self.config.name) else []
        key = canonical(space, strategy).key
        return next((record for record in records if canonical(space, record.strategy).key == key), None)

    def baseline(self, records: Sequence[EpisodeRecord]) -> Objectives | None:
        """The uncompressed model's objectives, once measured."""
        return next((record.objectives for record in records if record.episode == 0), None)

    def settled(self, baseline: Objectives | None) -> Desk:
        """The same with the wish's constraints in the study, those in proportion to the baseline once it is known."""
        wanted = (*self.config.constraints, *self.wish.constraints_for(baseline))
        return replace(self, config=self.config.model_copy(update={"constraints": tuple(dict.fromkeys(wanted))}))

    def constraints(self, baseline: Objectives | None) -> tuple[Constraint, ...]:
        """What a strategy has to satisfy, for planning: before the baseline is measured, as far as it can be told.

        Planners then take every objective of the baseline as 1, so bounds in proportion are kept as they are, one on
        the size becomes a proportion by the model's shape, and others in absolute units are left for later.
        """
        if baseline is not None:
            return self.settled(baseline).config.constraints
        found = [bound.as_ratio() for bound in self.wish.relative]
        whole = self.spec.parameters * self.spec.bytes_per_parameter / 1e9
        for item in (*self.config.constraints, *self.wish.constraints):
            if item.quantity == "model_size_gb":
                found.append(Constraint(quantity="size_ratio", operator=item.operator, bound=item.bound / whole))
            elif item.quantity in {"accuracy", "accuracy_drop", "size_ratio"}:
                found.append(item)
        return tuple(found)

    def situation(self, baseline: Objectives | None) -> Situation:
        """What planners may know now."""
        known = situation_of(self.config, self.spec, self.dataset, self.bench)
        return known.model_copy(update={"constraints": self.constraints(baseline)})

    def grams_spent(self) -> float:
        """CO2e of everything recorded of the study."""
        history = self.bench.history
        records = history.records(self.config.name) if history.exists(self.config.name) else []
        return sum(record.co2_grams_spent for record in records)

    def seconds_spent(self) -> float:
        """Work of everything recorded of the study."""
        history = self.bench.history
        records = history.records(self.config.name) if history.exists(self.config.name) else []
        return sum(record.timings.get("total", 0.0) for record in records)

    @property
    def grams_left(self) -> float | None:
        """Of the carbon budget; None where there is none."""
        budget = self.config.carbon_budget_kg
        return None if budget is None else budget * 1000 - self.grams_spent()

    @property
    def seconds_left(self) -> float | None:
        """Of the time budget; None where there is none."""
        budget = self.config.budget_hours
        return None if budget is None else budget * 3600 - self.seconds_spent()


def open_desk(config: StudyConfig, wish: Wish, bench: Workbench) -> Desk:
    """Look at the model and the dataset; neither is loaded.

    Raises:
        ModelError: the model is missing, corrupt, gated or has no tokenizer.
        DatasetError: the dataset is missing or malformed.
    """
    spec = infer_model_spec(config, bench)
    dataset = dataset_of(config, bench.settings)
    return Desk(config, wish, spec, dataset, offered_space(config, dataset), bench)


class _NothingYet:
    """The history of studies that were not begun: opening the real one makes a database, which takes seconds."""

    def exists(self, study: str) -> bool:
        return False

    def records(self, study: str) -> list[EpisodeRecord]:
        return []


def bench_for_planning(study: str) -> Workbench:
    """A workbench that plans and carries nothing out; the history is opened only where the study was begun."""
    settings = get_settings()
    if (study_folder(settings, study) / "study.json").is_file():
        return open_workbench()
    return Workbench(settings=settings, history=cast(History, _NothingYet()), supervisor=shared_supervisor())
