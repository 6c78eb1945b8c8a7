"""Bounds on a full accuracy from a part of its items, valid whenever one stops looking.

Items are asked in a random order without replacement. For a supposed accuracy ``a`` over all ``N`` items a bettor
starts with 1 and bets, before each item, that it will score less than it must on average if ``a`` is true: of bounded
observations ``x`` in [0, 1] with supposed mean ``m``, the rest of the items must then average
``m_t = (N m - x_1 - … - x_{t-1}) / (N - t + 1)``, and a bet of the fraction ``g`` of all that can be staked
multiplies the capital by ``1 + g (m_t - x_t) / (1 - m_t)``, which is never negative and has expectation 1 at most when
the mean is ``m`` or more. By Ville's inequality the capital ever reaches ``1 / error`` with a probability of at most
``error``, however often one looks, so every ``a`` at which it did is refuted: a confidence sequence for sampling
without replacement (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86,
2024, section 5; arXiv 2010.09686). The lower bound bets the other way.

A mean of such capitals is one again. Here it is taken over twelve fractions ``g``, so that no spread has to be known
beforehand, and over several *predictors*: an item's score less what rivals scored on the same item has the same mean,
up to a known constant, and varies less the more alike the two models answer. That is the paired comparison.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

__all__ = ["Population", "lower_bound", "upper_bound"]

_FRACTIONS = tuple(0.98 * 0.62**step for step in range(12))
_GRID = 33


@dataclass(frozen=True)
class Population:
    """The items of an accuracy, in the random order in which they are asked.

    Attributes:
        weights: what each item's score counts for: ``N`` times its share of the accuracy, shape ``(N,)``, mean 1.
        predictors: what is known beforehand of each item (rivals' scores), in [0, 1], each of shape ``(N,)``.
    """

    weights: Vector
    predictors: tuple[Vector, ...] = ()


def upper_bound(population: Population, scores: Sequence[float], error: float) -> float:
    """The largest accuracy that the first items do not refute.

    Args:
        population: all items.
        scores: of the first items, in the population's order, each in [0, 1].
        error: probability with which the bound may ever lie below the accuracy over all items.

    Returns:
        A number in [0, 1]: 1 before the first item, the accuracy itself after the last.
    """
    import numpy as np

    n, total = len(scores), len(population.weights)
    gained = float(population.weights[:n] @ np.asarray(scores, dtype=np.float64)) / total
    most = min(1.0, gained + float(population.weights[n:].sum()) / total)
    if n in (0, total):
        return most
    # The refuted accuracies are those above the bound: where the capital is not quite monotone, the last one that
    # stands counts, found on a grid and then by halving.
    low, high = gained, most
    for _ in range(2):
        grid = np.linspace(low, high, _GRID, dtype=np.float64)
        standing = np.flatnonzero(_capital(population, scores, grid) < -math.log(error))
        last = int(standing[-1]) if len(standing) else 0
        low, high = float(grid[last]), float(grid[min(last + 1, _GRID - 1)])
    return high


def lower_bound(population: Population, scores: Sequence[float], error: float) -> float:
    """The smallest accuracy that the first items do not refute; see ``upper_bound``."""
    mirrored = Population(population.weights, tuple(1.0 - values for values in population.predictors))
    return 1.0 - upper_bound(mirrored, [1.0 - score for score in scores], error)


def _capital(population: Population, scores: Sequence[float], accuracies: Vector) -> Vector:
    """Logarithm of the largest capital so far against each supposed accuracy, shape ``(len(accuracies),)``."""
    import numpy as np

    asked = np.asarray(scores, dtype=np.float64)
    n = len(asked)
    widest = float(population.weights.max())
    weighted = population.weights[:n] * asked
    total = _bets(weighted / widest, accuracies / widest, len(population.weights))
    for predictor in population.predictors:
        known = population.weights * predictor
        differences = (weighted - known[:n]) / (2 * widest) + 0.5
        means = (accuracies - float(known.mean())) / (2 * widest) + 0.5
        total = np.logaddexp(total, _bets(differences, means, len(population.weights)))
    capitals = len(_FRACTIONS) * (1 + len(population.predictors))
    return np.asarray(total.max(axis=1) - math.log(capitals))


def _bets(observed: Vector, means: Vector, total: int) -> Vector:
    """Logarithm of the sum of all fractions' capitals after each item, shape ``(means, items)``."""
    import numpy as np

    n = len(observed)
    before = np.concatenate(([0.0], np.cumsum(observed)[:-1]))
    rest = (total * means[:, None] - before) / (total - np.arange(n))  # (means, items)
    room = 1.0 - rest
    impossible = room <= 1e-12
    gain = (rest - observed) / np.where(impossible, 1.0, room)
    # Where every item left would have to be perfect, any other answer refutes the mean; from there on it stays refuted.
    refuted = np.logical_or.accumulate((rest > 1.0 + 1e-9) | (impossible & (observed < rest - 1e-9)), axis=1)
    gain = np.where(impossible, 0.0, gain)
    capitals = np.full(gain.shape, -np.inf)
    for fraction in _FRACTIONS:  # one after the other: all at once would be gigabytes for 30,000 items
        capitals = np.logaddexp(capitals, np.cumsum(np.log1p(fraction * gain), axis=1))
    return np.asarray(np.where(refuted, np.inf, capitals))
