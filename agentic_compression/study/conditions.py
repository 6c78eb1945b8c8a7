"""Stages with a condition: measured before they are carried out, in the order of the strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentic_compression.records import (
    CheckpointRef,
    CompressionOutcome,
    Condition,
    QualityOutcome,
    Stage,
    Strategy,
)

__all__ = ["Settled", "settle_conditions"]


@dataclass(frozen=True)
class Settled:
    """A strategy whose conditions are decided.

    Attributes:
        strategy: the stages to carry out, without conditions.
        decisions: one line for every stage that had a condition.
        failure: what ended it early, a first stage that failed or a measurement that did; None when nothing did.
        seconds: spent on the way.
        joules: spent on the way.
    """

    strategy: Strategy
    decisions: tuple[str, ...] = ()
    failure: CompressionOutcome | None = None
    seconds: float = 0.0
    joules: float = 0.0


def settle_conditions(
    strategy: Strategy,
    baseline: CheckpointRef,
    carry_out: Callable[[Strategy], CompressionOutcome],
    measure: Callable[[CheckpointRef], QualityOutcome],
) -> Settled:
    """Decide, stage by stage, what of a strategy is carried out.

    For every stage with a condition the stages before it are carried out and measured; their result is stored, so that
    carrying out the settled strategy afterwards does not repeat them.

    Args:
        strategy: with every default written out.
        baseline: the uncompressed model, for comparison.
        carry_out: compresses with a strategy without conditions.
        measure: accuracy and perplexity of a checkpoint.
    """
    stages: list[Stage] = []
    decisions: list[str] = []
    seconds = joules = 0.0

    def settled(failure: CompressionOutcome | None = None) -> Settled:
        return Settled(Strategy(stages=tuple(stages), name=strategy.name), tuple(decisions), failure, seconds, joules)

    for stage in strategy.stages:
        plain = stage.model_copy(update={"when": None})
        if stage.when is not None:
            made = carry_out(Strategy(stages=tuple(stages)))
            seconds, joules = seconds + made.seconds, joules + made.joules
            if made.checkpoint is None:
                return settled(made)
            qualities = [measure(baseline), measure(made.checkpoint)]
            seconds += sum(quality.seconds for quality in qualities)
            joules += sum(quality.joules for quality in qualities)
            broken = next((quality for quality in qualities if quality.status != "succeeded"), None)
            if broken is not None:
                return settled(CompressionOutcome(status=broken.status, error=f"{stage.label}: {broken.error}"))
            value = _value(stage.when, *qualities)
            if value is None:
                error = f"{stage.label}: the dataset has nothing to measure {stage.when.metric} on"
                return settled(CompressionOutcome(status="failed", error=error))
            runs = value > stage.when.above
            done = "carried out" if runs else "left out"
            decisions.append(
                f"{plain.label}: {done}, {stage.when.metric} is {value:.4f}, the limit {stage.when.above:g}"
            )
            if not runs:
                continue
        stages.append(plain)
    return settled()


def _value(condition: Condition, baseline: QualityOutcome, reached: QualityOutcome) -> float | None:
    if condition.metric == "accuracy_drop":
        if baseline.accuracy is None or reached.accuracy is None:
            return None
        return baseline.accuracy - reached.accuracy
    if baseline.perplexity is None or reached.perplexity is None:
        return None
    return reached.perplexity / baseline.perplexity - 1
