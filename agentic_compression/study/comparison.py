"""Two checkpoints on the same items, in child processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentic_compression.errors import AcfError
from agentic_compression.evaluation.divergence import DivergenceRequest
from agentic_compression.records import (
    CheckpointRef,
    Comparison,
    CompressionOutcome,
    DatasetSpec,
    Divergence,
    Evaluation,
    StudyConfig,
)
from agentic_compression.study.episode import evaluate
from agentic_compression.study.workbench import Workbench

__all__ = ["Side", "compare_sides", "divergence_of"]

DIVERGENCE = "agentic_compression.evaluation.divergence:divergence_between"


@dataclass(frozen=True)
class Side:
    """One of the two: its name, its checkpoint, and its evaluation where that is to be taken as it was stored."""

    name: str
    checkpoint: CheckpointRef | None
    evaluation: Evaluation | None = None


def compare_sides(
    config: StudyConfig, dataset: DatasetSpec, baseline: Side, candidate: Side, bench: Workbench
) -> Comparison:
    """Measure what has not been measured, and compare.

    Args:
        config: how to measure.
        dataset: what to ask.
        baseline, candidate: what to ask it of.
        bench: the child processes.

    Raises:
        AcfError: when a checkpoint cannot be measured, with the reason.
    """
    from agentic_compression.evaluation.comparison import compare_evaluations

    first, second = (_measured(config, dataset, side, bench) for side in (baseline, candidate))
    divergence, warning = divergence_of(config, dataset, baseline, candidate, bench)
    compared = compare_evaluations(
        first,
        second,
        names=(baseline.name, candidate.name),
        weights={task.name: task.weight for task in dataset.tasks},
        divergence=divergence,
        seed=config.seed,
    )
    return compared.model_copy(update={"warnings": (*compared.warnings, warning)}) if warning else compared


def divergence_of(
    config: StudyConfig, dataset: DatasetSpec, teacher: Side, student: Side, bench: Workbench
) -> tuple[Divergence | None, str]:
    """The student's divergence from the teacher, or why there is none."""
    if teacher.checkpoint is None or student.checkpoint is None:
        return None, "the divergence is not known: a checkpoint's folder is gone (acf rebuild STUDY EPISODE)"
    request = DivergenceRequest(
        teacher=teacher.checkpoint,
        student=student.checkpoint,
        dataset=dataset,
        measured=config.evaluation,
        store_root=str(bench.settings.artifacts / "teachers"),
    )
    done = bench.supervisor.run(DIVERGENCE, request, timeout_s=config.episode_timeout_s)
    if done.result is None:
        return None, f"the divergence is not known: {done.error}"
    return Divergence.model_validate(done.result), ""


def _measured(config: StudyConfig, dataset: DatasetSpec, side: Side, bench: Workbench) -> Evaluation:
    if side.evaluation is not None:
        return side.evaluation
    if side.checkpoint is None:
        raise AcfError(f"{side.name} has neither a checkpoint nor an evaluation; make it again: acf rebuild")
    as_stored = CompressionOutcome(status="succeeded", checkpoint=side.checkpoint, cached=True)
    outcome = evaluate(config, dataset, as_stored, bench)
    if outcome.evaluation is None:
        raise AcfError(
            f"{side.name} ({Path(side.checkpoint.path).name}): the evaluation {outcome.status}: {outcome.error}"
        )
    return outcome.evaluation
