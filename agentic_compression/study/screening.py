"""What a candidate of a study has to stand beside: the plan that its evaluation takes along."""

from __future__ import annotations

from collections.abc import Sequence

from agentic_compression.evaluation.request import engine_of
from agentic_compression.frontier import build_frontier, comparable
from agentic_compression.records import (
    CheckpointRef,
    EpisodePlan,
    EpisodeRecord,
    Evaluation,
    KlEvidence,
    Rival,
    ScreeningPlan,
    StudyConfig,
)
from agentic_compression.study.workbench import Workbench

__all__ = ["LEAST_RIVALS", "kl_evidence", "screening_plan", "teacher_of"]

LEAST_RIVALS = 4
"""Episodes measured in full, the baseline among them, before a candidate may be rejected."""


def screening_plan(config: StudyConfig, plan: EpisodePlan, bench: Workbench) -> ScreeningPlan:
    """The rivals of an episode, from the study's history; none for the baseline.

    The baseline, the seeds and the first candidates are measured in full whatever the rungs say: there is nothing to
    compare them with, and every planner starts from the same ones. Answers are taken along for the baseline and for
    the members of the frontier over the search items, which is what a candidate is paired with.
    """
    if plan.episode == 0:
        return ScreeningPlan(reject=False)
    records = comparable(bench.history.records(config.name))
    measured = [record for record in records if record.status == "succeeded" and record.objectives is not None]
    on_search_side = [record.model_copy(update={"report": None}) for record in measured]
    members = {solution.episode for solution in build_frontier(config.name, on_search_side).solutions}
    baseline = bench.history.evaluation(config.name, 0)
    items = _items(baseline)
    rivals = [
        _rival(
            record, bench.history.evaluation(config.name, record.episode) if _paired(record, members) else None, items
        )
        for record in measured
    ]
    enough = len(rivals) >= LEAST_RIVALS and any(rival.episode == 0 for rival in rivals)
    return ScreeningPlan(
        rivals=tuple(rivals),
        reject=config.screening and enough and plan.source != "seed",
        items=items,
        evidence=kl_evidence(records),
    )


def teacher_of(config: StudyConfig, plan: EpisodePlan, bench: Workbench) -> CheckpointRef | None:
    """The uncompressed model, for every episode but its own; None where it could not be measured."""
    if plan.episode == 0:
        return None
    records = bench.history.records(config.name)
    return next((record.checkpoint for record in records if record.episode == 0 and record.status == "succeeded"), None)


def kl_evidence(records: Sequence[EpisodeRecord]) -> tuple[KlEvidence, ...]:
    """Of every episode whose divergence and accuracy were read: the divergence and the accuracy's upper end."""
    found = []
    for record in records:
        kl = [reading.value for reading in record.screening if reading.quantity == "kl"]
        highs = [reading.high for reading in record.screening if reading.quantity == "accuracy"]
        if record.objectives is not None and "accuracy" in record.intervals:
            highs.append(record.intervals["accuracy"][1])
        if kl and highs:
            found.append(KlEvidence(kl=kl[-1], accuracy=highs[-1]))
    return tuple(found)


def _paired(record: EpisodeRecord, members: set[int]) -> bool:
    return record.episode == 0 or record.episode in members


def _items(evaluation: Evaluation | None) -> dict[str, tuple[str, ...]]:
    """Ids by task of what was asked; empty where a task is plain text, whose outcomes are no items."""
    if evaluation is None or any(score.groups for score in evaluation.benchmarks):
        return {}
    return {score.task: score.items for score in evaluation.benchmarks}


def _rival(record: EpisodeRecord, evaluation: Evaluation | None, items: dict[str, tuple[str, ...]]) -> Rival:
    assert record.objectives is not None
    scores: dict[str, tuple[float, ...]] = {}
    for score in evaluation.benchmarks if evaluation else ():
        values = dict(zip(score.items, score.outcomes or score.values, strict=False))
        if set(values) == set(items.get(score.task, ())):
            scores[score.task] = tuple(float(values[name]) for name in items[score.task])
    readings = {reading.quantity: reading.value for reading in record.screening}
    return Rival(
        episode=record.episode,
        objectives=record.objectives,
        intervals=record.intervals,
        kl=readings.get("kl"),
        engine=engine_of(record.checkpoint) if record.checkpoint else "",
        weights_gb=readings.get("weights_gb", 0.0),
        scores=scores,
    )
