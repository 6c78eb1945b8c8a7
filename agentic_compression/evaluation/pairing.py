"""Two models' answers to one task, item beside item."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.paired import Numbers, PairedUnits, mcnemar
from agentic_compression.records import BenchmarkScore, Flips

__all__ = ["PairedTask", "pair_scores"]


@dataclass(frozen=True)
class PairedTask:
    """One task on the items that both models were asked.

    Attributes:
        units: differences of items, or of documents.
        baseline, candidate: the scores on those items.
        flips: changed answers; None where items score between 0 and 1 or are tokens.
        warnings: what is odd about the pairing.
    """

    units: PairedUnits
    baseline: float
    candidate: float
    flips: Flips | None
    warnings: tuple[str, ...] = ()


def pair_scores(baseline: BenchmarkScore, candidate: BenchmarkScore) -> PairedTask:
    """Pair by item where the items' names were stored, else by position where both were asked the same.

    Raises:
        DatasetError: when nothing can be paired.
    """
    first, second = _units_of(baseline), _units_of(candidate)
    rows, columns, warnings = _matching(baseline, candidate, len(first.sizes), len(second.sizes))
    before, after = first.pick(rows), second.pick(columns)
    if not (before.sizes == after.sizes).all():
        raise DatasetError(
            f"documents of {baseline.task} must have the same tokens for both models, got other numbers of them; "
            "models with different tokenizers cannot be compared token by token: use a task with questions"
        )
    units = PairedUnits(differences=after.right - before.right, sizes=before.sizes)
    if baseline.metric == "next_token_top1" and not (baseline.groups and candidate.groups):
        warnings.append(
            f"{baseline.task}: an older evaluation did not store where documents end, so tokens count as independent "
            "and the interval is too narrow; measure it again"
        )
    return PairedTask(
        units=units,
        baseline=float(before.right.sum() / before.sizes.sum()),
        candidate=float(after.right.sum() / after.sizes.sum()),
        flips=_flips(units) if first.binary and second.binary else None,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class _Units:
    """Right answers and answers of every unit; ``binary`` where units are items of 1 or 0."""

    right: Numbers
    sizes: Numbers
    binary: bool

    def pick(self, places: Sequence[int]) -> _Units:
        return _Units(self.right[list(places)], self.sizes[list(places)], self.binary)


def _units_of(score: BenchmarkScore) -> _Units:
    answers = np.asarray(score.outcomes or score.values, dtype=np.float64)
    if not len(answers):
        raise DatasetError(
            f"the evaluation of {score.task} must hold a score for every item, got only the mean; measure it again"
        )
    if not np.isfinite(answers).all():
        raise DatasetError(f"the scores of {score.task} must be finite, got NaN or infinity; measure it again")
    if not score.groups:
        binary = bool(score.outcomes) and score.metric != "next_token_top1"
        return _Units(answers, np.ones(len(answers)), binary)
    sizes = np.asarray(score.groups, dtype=np.int64)
    if sizes.sum() != len(answers) or (sizes < 1).any():
        raise DatasetError(
            f"the documents of {score.task} must hold its {len(answers)} tokens, got {sizes.sum()}; measure it again"
        )
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return _Units(np.add.reduceat(answers, starts), sizes.astype(np.float64), binary=False)


def _matching(
    baseline: BenchmarkScore, candidate: BenchmarkScore, first: int, second: int
) -> tuple[list[int], list[int], list[str]]:
    """Places of the shared units in both, which have so many, and what to warn of."""
    same = baseline.items_digest and baseline.items_digest == candidate.items_digest
    if same and first == second:
        return list(range(first)), list(range(first)), []
    names, others = _names(baseline, first), _names(candidate, second)
    if names is None or others is None:
        raise DatasetError(
            f"both models must have been asked the same items of {baseline.task}, got other ones ({first} and "
            f"{second}) whose names were not stored; measure both again with the same --limit and seed"
        )
    places = {name: place for place, name in enumerate(others)}
    shared = [(place, places[name]) for place, name in enumerate(names) if name in places]
    if not shared:
        raise DatasetError(f"both models must have been asked the same items of {baseline.task}, got none in common")
    warnings = []
    if not len(shared) == first == second:
        warnings.append(
            f"{baseline.task}: asked were {first} and {second} items; compared are the {len(shared)} in common"
        )
    return [place for place, _ in shared], [place for _, place in shared], warnings


def _names(score: BenchmarkScore, units: int) -> list[tuple[str, int]] | None:
    """Each unit's name and how often it came before; None where names were not stored."""
    if len(score.items) != units:
        return None
    seen: dict[str, int] = defaultdict(int)
    names = []
    for name in score.items:
        names.append((name, seen[name]))
        seen[name] += 1
    return names


def _flips(units: PairedUnits) -> Flips:
    lost, gained = int((units.differences < 0).sum()), int((units.differences > 0).sum())
    return Flips(n=len(units.differences), right_to_wrong=lost, wrong_to_right=gained, p_value=mcnemar(lost, gained))
