"""Arithmetic of the five objectives that both measuring and the frontier need: losses, noise, boxes, hypervolume.

Pure functions of numbers. What they mean for a study stands in ``agentic_compression.frontier``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agentic_compression.records import Objectives

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = [
    "COST_FACTOR",
    "NAMES",
    "boxes_of",
    "half_width",
    "hypervolume",
    "loss_rows",
    "noise_of",
    "normalised_losses",
    "reference_point",
]

NAMES = tuple(Objectives.model_fields)
"""``accuracy``, then the four costs: the order of every row and column here."""

COST_FACTOR = 2.0
"""The reference point lies at this many times the baseline's costs."""

_NORMAL_QUANTILE = 1.959963984540054  # a 95 % interval is this many standard errors to each side
_NOISY_COSTS = ("latency_ms", "memory_gb", "co2_grams")
_EDGE = 1e-9  # of a cell: rounding must not push a point that lies on an edge to its other side


def reference_point(baseline: Objectives) -> Objectives:
    """The worst that a candidate may be and still count: accuracy 0 and ``COST_FACTOR`` times each cost."""
    costs = {name: COST_FACTOR * float(getattr(baseline, name)) for name in NAMES[1:]}
    return Objectives(accuracy=0.0, **costs)


def noise_of(intervals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Epsilon by objective: one standard error of accuracy, half the interval of a measured cost, 0 for size."""
    noise = {"accuracy": half_width(intervals, "accuracy") / _NORMAL_QUANTILE}
    noise |= {name: half_width(intervals, name) for name in _NOISY_COSTS}
    noise["model_size_gb"] = 0.0
    return {name: noise[name] for name in NAMES}


def half_width(intervals: Mapping[str, tuple[float, float]], name: str) -> float:
    """Half of an objective's interval; 0 where there is none or it is not finite."""
    low, high = intervals.get(name, (0.0, 0.0))
    width = (high - low) / 2
    return width if math.isfinite(width) and width > 0 else 0.0


def loss_rows(objectives: Sequence[Objectives]) -> Matrix:
    """Objectives with every column to be minimised.

    Returns:
        Array of shape ``(points, 5)`` in the order of ``NAMES``; the first column is ``1 - accuracy``, the others
        are the costs in their own units.
    """
    import numpy as np

    rows = [(1.0 - o.accuracy, o.latency_ms, o.memory_gb, o.model_size_gb, o.co2_grams) for o in objectives]
    return np.array(rows, dtype=np.float64).reshape(-1, len(NAMES))


def normalised_losses(matrix: Matrix, reference: Objectives) -> Matrix:
    """Losses over the reference point, so that 1 is the reference point in every column and 0 is perfect.

    Args:
        matrix: losses of shape ``(points, 5)``, as ``loss_rows`` gives them.
        reference: the fixed reference point.

    Returns:
        Array of the same shape. Where the reference is 0 (a baseline that costs nothing) a cost of 0 stays 0 and any
        other becomes infinite: worse than the reference.
    """
    import numpy as np

    scale = np.array([1.0 - reference.accuracy, *(getattr(reference, name) for name in NAMES[1:])])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scale > 0, matrix / scale, np.where(matrix > 0, np.inf, 0.0))


def hypervolume(matrix: Matrix, reference: Objectives | None) -> float:
    """Share of the space between perfect and the reference point that the points dominate, computed by moocore.

    Args:
        matrix: losses of shape ``(points, 5)`` in the objectives' units, as ``loss_rows`` gives them.
        reference: the fixed reference point; without one the hypervolume is 0.

    Returns:
        A number in [0, 1]. A point beyond the reference in any objective contributes 0.
    """
    import numpy as np

    if reference is None or len(matrix) == 0:
        return 0.0
    points = normalised_losses(matrix, reference)
    inside = points[(points < 1.0).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    import moocore

    return min(max(float(moocore.hypervolume(inside, np.ones(inside.shape[1]))), 0.0), 1.0)


def boxes_of(matrix: Matrix, anchor: Matrix, epsilon: Sequence[float]) -> Matrix:
    """The box of each point (see ``frontier.dominance``).

    Args:
        matrix: losses of shape ``(points, 5)``, every column minimised, in the objectives' units.
        anchor: losses of shape ``(5,)`` at the middle of a cell (the baseline's).
        epsilon: noise of each column; 0 compares exactly.

    Returns:
        Array of shape ``(points, 5)``: cell indices as whole floats, or the loss itself where epsilon is 0.
    """
    import numpy as np

    width = np.asarray(epsilon, dtype=np.float64)
    cells = np.floor((matrix - anchor) / np.where(width > 0, width, 1.0) + 0.5 + _EDGE)
    return np.where(width > 0, cells, matrix)
