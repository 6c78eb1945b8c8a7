"""How many items it takes: the size of a paired comparison for a wanted power."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from agentic_compression.evaluation.paired import ALPHA, PairedUnits, null_variance

__all__ = ["POWER", "detectable_drop", "items_for", "items_needed"]

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
    return _items(drop, discordance, power)


def items_needed(tasks: Sequence[PairedUnits], weights: Sequence[float], power: float = POWER) -> int | None:
    """Units that would settle the verdict if the difference is the one seen, in the same proportion of tasks.

    The difference seen is itself uncertain, so this is the order of magnitude. None when no difference was seen.
    """
    total = float(sum(weights))
    seen = abs(sum(weight / total * task.mean for weight, task in zip(weights, tasks, strict=True)))
    if seen < 1e-12:
        return None
    return _items(seen, null_variance(tasks, weights), power)


def detectable_drop(units: int, discordance: float, power: float = POWER) -> float | None:
    """The smallest difference that so many items show with this power; None when not even all items would.

    A drop cannot exceed the share of changed answers, so where few changed, that share grows with it.
    """
    low, high = 0.0, 1.0
    if _items(high, 1.0, power) > units:
        return None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _items(middle, max(discordance, middle), power) > units:
            low = middle
        else:
            high = middle
    return high


def _items(drop: float, variance: float, power: float) -> int:
    """``variance`` is that of one item's difference if there were no drop: the discordance, for items of 1 or 0."""
    normal = NormalDist()
    test = normal.inv_cdf(1 - ALPHA / 2) * math.sqrt(variance)
    chance = normal.inv_cdf(power) * math.sqrt(max(variance - drop**2, 0.0))
    return math.ceil(_MARGIN * ((test + chance) / drop) ** 2 + 2 / drop)
