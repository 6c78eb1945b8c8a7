"""Paired statistics: how far two models differ on the same items, and whether that could be chance.

The independent units are items, or whole documents where outcomes are tokens: tokens of one document depend on each
other. Tasks are strata: units are resampled within their task.

The interval is a percentile bootstrap of the units and of two more, one gained and one lost answer. Without them the
bootstrap knows only the flips that happened: no flip in 600 items would give an interval of no width, and with a few
flips its coverage falls far below 95 %. For items scored 1 or 0 this is the resampled form of the interval of
D. G. Bonett & R. M. Price (2012, J. Educ. Behav. Stat. 37, 479), which adds one to both kinds of flips.

The test flips the sign of every unit's difference at random, which changes nothing if both models are equally good
(R. A. Fisher, 1935). For items scored 1 or 0 that all weigh the same it is McNemar's exact test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentic_compression.evaluation.intervals import resamples, shares_of
from agentic_compression.records import Estimate, Verdict

__all__ = [
    "ALPHA",
    "PairedUnits",
    "mcnemar",
    "null_variance",
    "paired_difference",
    "sign_flip_test",
    "verdict_of",
]

ALPHA = 0.05
_RESAMPLES = 10_000
_SIGN_FLIPS = 20_000
_COUNTED = 256  # with so few distinct units, their counts are drawn instead of the units
_CELLS = 4_000_000
_DIGITS = 12

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class PairedUnits:
    """One task's units.

    Attributes:
        differences: right answers of the candidate less those of the baseline, ``(units,)``; an item's lies in [-1, 1].
        sizes: answers of a unit, ``(units,)``: 1 for an item, a document's tokens.
    """

    differences: Numbers
    sizes: Numbers

    def __post_init__(self) -> None:
        same = len(self.differences) == len(self.sizes) > 0
        if not same or not np.isfinite([self.differences, self.sizes]).all() or self.sizes.min() <= 0:
            raise ValueError(
                f"a task needs a unit or more, each with a finite difference and a finite, positive size, got "
                f"{len(self.differences)} differences and {len(self.sizes)} sizes"
            )

    @property
    def mean(self) -> float:
        """Difference an answer."""
        return float(self.differences.sum() / self.sizes.sum())


def paired_difference(tasks: Sequence[PairedUnits], weights: Sequence[float], seed: int) -> Estimate:
    """Weighted mean over tasks of the difference an answer, candidate less baseline, with its 95 % interval.

    Args:
        tasks: units of every task.
        weights: of the tasks, positive.
        seed: of the 10,000 resamples.

    Returns:
        ``n`` is the number of units, ``spread`` the standard error if both were equally good, times the root of ``n``.
    """
    shares = shares_of(weights)
    value = sum(share * task.mean for share, task in zip(shares, tasks, strict=True))
    generator = np.random.default_rng(seed)
    resampled = np.zeros(_RESAMPLES)
    for share, task in zip(shares, tasks, strict=True):
        resampled += share * _resampled_means(task, generator)
    low, high = (float(edge) for edge in np.percentile(resampled, [2.5, 97.5]))
    n = sum(len(task.sizes) for task in tasks)
    spread = math.sqrt(null_variance(tasks, weights))
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=n, spread=spread)


def null_variance(tasks: Sequence[PairedUnits], weights: Sequence[float]) -> float:
    """Variance of the weighted difference if both models are equally good, times the number of units.

    For one task of items scored 1 or 0 it is the share of changed answers.
    """
    n = sum(len(task.sizes) for task in tasks)
    parts = zip(shares_of(weights), tasks, strict=True)
    return n * sum(share**2 * float((task.differences**2).sum() / task.sizes.sum() ** 2) for share, task in parts)


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """Exact two-sided p-value of McNemar's test: the flips are tosses of a fair coin.

    Example:
        >>> mcnemar(1, 5)
        0.21875
    """
    flips, fewer = right_to_wrong + wrong_to_right, min(right_to_wrong, wrong_to_right)
    ways = total = 1
    for k in range(fewer):
        ways = ways * (flips - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / 2**flips)


def sign_flip_test(tasks: Sequence[PairedUnits], weights: Sequence[float], seed: int) -> float:
    """Two-sided p-value of the weighted difference under random signs of the units' differences.

    Exact where all changed units weigh the same, else from 20,000 draws, the observed one counted among them.
    """
    parts = [
        share * task.differences[task.differences != 0] / task.sizes.sum()
        for share, task in zip(shares_of(weights), tasks, strict=True)
    ]
    contributions = np.concatenate(parts) if parts else np.empty(0)
    if not len(contributions):
        return 1.0
    scaled = np.round(contributions / np.abs(contributions).max(), _DIGITS)
    sizes, counts = np.unique(np.abs(scaled), return_counts=True)
    if len(sizes) == 1:
        lost = int((contributions < 0).sum())
        return mcnemar(lost, len(contributions) - lost)
    generator, observed, extreme = np.random.default_rng(seed), abs(float(scaled.sum())), 0
    rows = max(1, _CELLS // len(sizes))
    for start in range(0, _SIGN_FLIPS, rows):
        heads = generator.binomial(counts, 0.5, size=(min(rows, _SIGN_FLIPS - start), len(sizes)))
        drawn = (2.0 * heads - counts) @ sizes
        extreme += int((np.abs(drawn) >= observed - 1e-9).sum())
    return (extreme + 1) / (_SIGN_FLIPS + 1)


def verdict_of(difference: Estimate, p_value: float) -> Verdict:
    """``worse`` or ``better`` when the interval excludes 0 and the test's p-value is at most 0.05, both of them.

    Either alone errs in some corner: the interval with few documents, the Monte Carlo test near 0.05. Together they
    keep the chance of a false ``worse`` at about 2.5 % and below it with few flips (docs/measurements/a_a_test.md).
    """
    if p_value > ALPHA or difference.low <= 0 <= difference.high:
        return "indistinguishable"
    return "better" if difference.value > 0 else "worse"


def _resampled_means(task: PairedUnits, generator: np.random.Generator) -> Numbers:
    """Differences an answer of resampled units, ``(resamples,)``, with one gained and one lost answer among them.

    What an added unit gains or loses is 1 for items scored 1 or 0; for others the largest difference seen.
    """
    largest = float(np.abs(task.differences).max()) or 1.0
    mean_size = float(task.sizes.mean())
    differences = np.concatenate([task.differences, [largest, -largest]])
    sizes = np.concatenate([task.sizes, [mean_size, mean_size]])
    n = len(sizes)
    kinds, counts = np.unique(np.stack([differences, sizes], axis=1), axis=0, return_counts=True)
    if len(kinds) <= _COUNTED:
        sums = generator.multinomial(n, counts / n, size=_RESAMPLES) @ kinds
    else:
        blocks = resamples(n, _RESAMPLES, generator)
        sums = np.concatenate([np.stack([differences[p].sum(axis=1), sizes[p].sum(axis=1)], axis=1) for p in blocks])
    means: Numbers = sums[:, 0] / sums[:, 1]
    return means
