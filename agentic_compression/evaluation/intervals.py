"""Intervals: Wilson for proportions, Student's t for few means, seeded bootstraps for medians and ratios.

Every interval is 95 % and two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agentic_compression.records import Estimate

__all__ = [
    "bootstrap_median",
    "bootstrap_ratio",
    "mean_estimate",
    "percentile",
    "proportion",
    "resamples",
    "shares_of",
    "weighted_mean",
    "wilson",
]

_Z = 1.959963984540054
_RESAMPLES = 2000
_CELLS = 4_000_000
# Two-sided 95 % quantiles of Student's t for 1, 2, … 30 degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927), which stays inside [0, 1].

    Raises:
        ValueError: when ``n`` is not positive or ``successes`` lies outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n, n at least 1; got {successes} of {n}")
    p, square = successes / n, _Z * _Z
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(p * (1 - p) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(outcomes: Sequence[int]) -> Estimate:
    """The fraction of ones with Wilson's interval; the spread is that of a 0/1 variable."""
    n, successes = len(outcomes), sum(outcomes)
    low, high = wilson(successes, n)
    p = successes / n
    return Estimate(value=p, low=min(low, p), high=max(high, p), n=n, spread=math.sqrt(p * (1 - p)))


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Mean with Student's t interval; a single observation has no width."""
    array = np.asarray(values, dtype=np.float64)
    mean, spread = float(array.mean()), _deviation(array)
    degrees = len(array) - 1
    quantile = _T[degrees - 1] if 1 <= degrees <= len(_T) else _Z
    half = quantile * spread / math.sqrt(len(array))
    return Estimate(value=mean, low=mean - half, high=mean + half, n=len(array), spread=spread)


def bootstrap_median(values: Sequence[float], seed: int) -> Estimate:
    """Median with the percentile bootstrap (2,000 seeded resamples; Efron & Tibshirani, 1993, chapter 13)."""
    array = np.asarray(values, dtype=np.float64)
    blocks = resamples(len(array), _RESAMPLES, np.random.default_rng(seed))
    medians = np.concatenate([np.median(array[picks], axis=1) for picks in blocks])
    low, high = np.percentile(medians, [2.5, 97.5])
    return Estimate(
        value=float(np.median(array)), low=float(low), high=float(high), n=len(array), spread=_deviation(array)
    )


def bootstrap_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    seed: int,
    transform: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda ratio: ratio,
) -> Estimate:
    """``transform(sum of numerators / sum of denominators)``, the pairs resampled together.

    The pairs are the independent units (documents), so that tokens of one document may depend on each other.
    The spread is the standard deviation of the transformed ratio of single pairs.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    generator = np.random.default_rng(seed)
    sums = [(top[picks].sum(axis=1), bottom[picks].sum(axis=1)) for picks in resamples(len(top), _RESAMPLES, generator)]
    resampled = transform(np.concatenate([above / below for above, below in sums]))
    value = float(transform(np.asarray([top.sum() / bottom.sum()]))[0])
    low, high = (float(edge) for edge in np.percentile(resampled, [2.5, 97.5]))
    spread = _deviation(transform(top / bottom))
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=len(top), spread=spread)


def weighted_mean(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Weighted mean of independent estimates.

    The lower and upper distances propagate apart, ``low = value - sqrt(sum (w_i (v_i - low_i))^2)``, so that a
    single estimate keeps its interval (method of variance estimates recovery, Zou & Donner 2008).
    """
    shares = shares_of(weights)
    value = sum(share * item.value for share, item in zip(shares, estimates, strict=True))
    below = math.sqrt(sum((s * (item.value - item.low)) ** 2 for s, item in zip(shares, estimates, strict=True)))
    above = math.sqrt(sum((s * (item.high - item.value)) ** 2 for s, item in zip(shares, estimates, strict=True)))
    spread = math.sqrt(sum(s * item.spread**2 for s, item in zip(shares, estimates, strict=True)))
    return Estimate(
        value=value, low=value - below, high=value + above, n=sum(item.n for item in estimates), spread=spread
    )


def shares_of(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        ValueError: when there is none, or one is not a positive, finite number.
    """
    if not weights or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights must be positive and finite, one a task, got {list(weights)}")
    total = float(sum(weights))
    return [weight / total for weight in weights]


def resamples(n: int, times: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Places of ``n`` units drawn with replacement, ``times`` times, in blocks ``(rows, n)`` of at most 32 MB.

    However large the blocks, the places are the same. One row is never cut.
    """
    rows = max(1, _CELLS // n)
    for start in range(0, times, rows):
        yield generator.integers(0, n, size=(min(rows, times - start), n))


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear-interpolated percentile, ``percent`` in [0, 100]."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent))


def _deviation(array: NDArray[np.float64]) -> float:
    return float(array.std(ddof=1)) if len(array) > 1 else 0.0
