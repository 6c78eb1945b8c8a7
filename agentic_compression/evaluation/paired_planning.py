"""How many items or documents it takes: the size of a paired comparison for a wanted power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from agentic_compression.evaluation.intervals import shares_of
from agentic_compression.evaluation.paired import ALPHA, PairedUnits, null_variance

__all__ = ["POWER", "detectable_drop", "items_for", "items_needed", "step_of"]

POWER = 0.8
_STEPS = 60
_MARGIN = 1.05  # the verdict asks for the interval as well as for the test


def items_for(drop: float, discordance: float, power: float = POWER) -> int:
    """Items that show a drop of this size as ``worse`` with this power.

    The normal approximation of McNemar's test (R. J. Connor, 1987, Biometrics 43, 207, for pairs of equal cost), and
    ``2 / drop`` more because the exact test moves in steps of two flips.

    Args:
        drop: true difference of the two accuracies, in (0, 1].
        discordance: share of items on which one model is right and the other wrong, at least ``drop``.
        power: chance of finding it.

    Example:
        >>> items_for(0.01, 0.05)
        4319

    Raises:
        ValueError: when a share is outside its range.
    """
    if not 0 < drop <= discordance <= 1 or not 0.5 <= power < 1:
        raise ValueError(
            f"0 < drop <= discordance <= 1 and 0.5 <= power < 1 must hold, got drop {drop}, discordance {discordance}, "
            f"power {power}"
        )
    return _items(drop, discordance, 1.0, power)


def items_needed(tasks: Sequence[PairedUnits], weights: Sequence[float], power: float = POWER) -> int | None:
    """Units that would settle an open verdict if the difference is the one seen, in the same proportion of tasks.

    The difference seen is itself uncertain, so this is the order of magnitude. None when no difference was seen.
    """
    seen = abs(sum(share * task.mean for share, task in zip(shares_of(weights), tasks, strict=True)))
    if seen < 1e-12:
        return None
    return _items(seen, null_variance(tasks, weights), step_of(tasks, weights), power)


def step_of(tasks: Sequence[PairedUnits], weights: Sequence[float]) -> float:
    """By how much one changed unit typically moves the weighted difference, times the number of units.

    1 for one task of items scored 1 or 0; for documents their changed tokens over their tokens. Where nothing changed,
    what one changed answer would move most.
    """
    n = sum(len(task.sizes) for task in tasks)
    parts = list(zip(shares_of(weights), tasks, strict=True))
    changed = sum(share * float(np.abs(task.differences).sum() / task.sizes.sum()) for share, task in parts)
    if changed > 0:
        return null_variance(tasks, weights) / changed
    return n * max(share / float(task.sizes.sum()) for share, task in parts)


def detectable_drop(units: int, discordance: float, power: float = POWER, step: float = 1.0) -> float | None:
    """The smallest difference that so many units show with this power; None when not even all of them would.

    A drop cannot exceed the share of changed answers, so where few changed, that share grows with it.

    Args:
        units: items or documents.
        discordance: as ``null_variance`` gives it; for items scored 1 or 0 the share of changed answers.
        power: chance of finding it.
        step: as ``step_of`` gives it; 1 for items scored 1 or 0.
    """
    low, high = 0.0, 1.0
    if _items(high, max(discordance, step), step, power) > units:
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _items(middle, max(discordance, step * middle), step, power) > units:
            low = middle
        else:
            high = middle
    return high


def _items(drop: float, variance: float, step: float, power: float) -> int:
    """``variance`` is that of one unit's difference if there were no drop: the discordance, for items of 1 or 0."""
    normal = NormalDist()
    test = normal.inv_cdf(1 - ALPHA / 2) * math.sqrt(variance)
    chance = normal.inv_cdf(power) * math.sqrt(max(variance - drop**2, 0.0))
    return math.ceil(_MARGIN * ((test + chance) / drop) ** 2 + 2 * step / drop)
