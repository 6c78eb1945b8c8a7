"""Two evaluations beside each other: paired differences, flips, ratios of costs, a verdict and its caveats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.comparison_fairness import unfairness
from agentic_compression.evaluation.comparison_summary import summary_of
from agentic_compression.evaluation.paired import mcnemar, null_variance, paired_difference, sign_flip_test, verdict_of
from agentic_compression.evaluation.paired_planning import detectable_drop, items_needed, step_of
from agentic_compression.evaluation.pairing import PairedTask, pair_scores
from agentic_compression.evaluation.ratios import cost_ratios
from agentic_compression.records import BenchmarkScore, Comparison, Divergence, Evaluation, Flips, PairedScore

__all__ = ["compare_evaluations", "compare_scores"]


def compare_evaluations(
    baseline: Evaluation,
    candidate: Evaluation,
    *,
    names: tuple[str, str] = ("baseline", "candidate"),
    weights: Mapping[str, float] | None = None,
    divergence: Divergence | None = None,
    seed: int = 0,
) -> Comparison:
    """Everything that can be said of the candidate beside the baseline.

    Args:
        baseline, candidate: measured on the same items, or on overlapping ones whose names were stored.
        names: what to call them.
        weights: of the tasks, by name; 1 for a task that is not named.
        divergence: of the candidate from the baseline; the candidate's own where it is from this very baseline.
        seed: of the bootstraps.

    Raises:
        DatasetError: when no task or item is shared, a task was scored by another metric, or a score is not a number.
        ValueError: when a weight is not positive and finite.
    """
    ratios = cost_ratios(baseline, candidate, seed)
    compared = compare_scores(baseline.benchmarks, candidate.benchmarks, names=names, weights=weights, seed=seed)
    own = candidate.divergence
    if divergence is None and own is not None and own.teacher_digest == baseline.checkpoint_digest:
        divergence = own
    full = compared.model_copy(
        update={
            "ratios": ratios,
            "divergence": divergence,
            "split": candidate.split,
            "warnings": (*compared.warnings, *unfairness(baseline, candidate)),
        }
    )
    return full.model_copy(update={"summary": summary_of(full)})


def compare_scores(
    baseline: Sequence[BenchmarkScore],
    candidate: Sequence[BenchmarkScore],
    *,
    names: tuple[str, str] = ("baseline", "candidate"),
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Comparison:
    """The quality part alone, from two lists of task scores.

    Raises:
        DatasetError: as ``compare_evaluations``.
        ValueError: when a weight is not positive and finite.
    """
    pairs, warnings = _paired_by_task(baseline, candidate)
    chosen = [(weights or {}).get(score.task, 1.0) for score, _ in pairs]
    units = [pair.units for _, pair in pairs]
    difference = paired_difference(units, chosen, seed)
    p_value = sign_flip_test(units, chosen, seed)
    verdict = verdict_of(difference, p_value)
    compared = Comparison(
        baseline=names[0],
        candidate=names[1],
        verdict=verdict,
        summary="",
        accuracy=difference,
        p_value=p_value,
        tasks=tuple(_paired_score(score, pair, seed) for score, pair in pairs),
        flips=_pooled([pair.flips for _, pair in pairs]),
        items_needed=items_needed(units, chosen) if verdict == "indistinguishable" else None,
        detectable_drop=detectable_drop(difference.n, null_variance(units, chosen), step=step_of(units, chosen)),
        warnings=(*warnings, *(line for _, pair in pairs for line in pair.warnings)),
    )
    return compared.model_copy(update={"summary": summary_of(compared)})


def _paired_by_task(
    baseline: Sequence[BenchmarkScore], candidate: Sequence[BenchmarkScore]
) -> tuple[list[tuple[BenchmarkScore, PairedTask]], list[str]]:
    others = {score.task: score for score in candidate}
    shared = [score for score in baseline if score.task in others]
    if not shared:
        asked = ", ".join(score.task for score in baseline), ", ".join(others)
        raise DatasetError(f"two evaluations must share a task, got {asked[0]} and {asked[1]}; use one --dataset")
    warnings = []
    alone = sorted({score.task for score in baseline} ^ set(others))
    if alone:
        warnings.append(f"left out, as only one of the two was asked: {', '.join(alone)}")
    pairs = []
    for score in shared:
        other = others[score.task]
        if score.metric != other.metric:
            raise DatasetError(
                f"{score.task} must be scored by one metric, got {score.metric} and {other.metric}; measure both again"
            )
        pairs.append((score, pair_scores(score, other)))
    return pairs, warnings


def _paired_score(score: BenchmarkScore, pair: PairedTask, seed: int) -> PairedScore:
    return PairedScore(
        task=score.task,
        metric=score.metric,
        baseline=pair.baseline,
        candidate=pair.candidate,
        difference=paired_difference([pair.units], [1.0], seed),
        p_value=sign_flip_test([pair.units], [1.0], seed),
        flips=pair.flips,
    )


def _pooled(flips: Sequence[Flips | None]) -> Flips | None:
    known = [item for item in flips if item is not None]
    if not known:
        return None
    lost, gained = sum(item.right_to_wrong for item in known), sum(item.wrong_to_right for item in known)
    n = sum(item.n for item in known)
    return Flips(n=n, right_to_wrong=lost, wrong_to_right=gained, p_value=mcnemar(lost, gained))
