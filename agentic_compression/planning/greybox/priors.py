"""What is believed of methods before anything was measured: monotone in bits, sparsity and rank, and wide.

Numbers are orders of magnitude from what weight quantization and pruning do to language models of any size: a bit less
costs a factor of three to four in divergence below five bits, a tenth more sparsity about two. They are means of wide
Gaussians: a few episodes outweigh them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from agentic_compression.planning.greybox.damage import Beliefs
from agentic_compression.planning.greybox.features import Columns
from agentic_compression.records import Category, MethodDescription

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["cost_deviations", "damage_beliefs", "time_expectations"]

_AT_REFERENCE: dict[Category, tuple[float, float]] = {
    "quantization": (math.log(8e-3), 1.5),
    "pruning": (math.log(4e-3), 1.6),
    "low_rank": (math.log(0.1), 1.6),
    "healing": (-0.6, 0.6),
}
"""ln KL at four bits, 0.3 sparsity or share, 0.8 of the rank; of healing, what it takes off the others' ln KL."""

_SLOPES: dict[str, tuple[float, float]] = {
    "bits": (-1.2, 0.5),
    "target_bits": (-1.2, 0.5),
    "type": (-1.2, 0.5),
    "group_size": (0.2, 0.2),
    "sparsity": (0.8, 0.35),
    "share": (0.7, 0.35),
    "rank_ratio": (-0.6, 0.35),
    "steps": (-0.2, 0.2),
}
_FORMATS = {"int8": (math.log(3e-4), 1.5), "nf4": (math.log(3e-3), 1.5)}


def damage_beliefs(columns: Columns) -> Beliefs:
    """Beliefs on ``ln KL`` by column."""
    mean, deviation = np.zeros(len(columns.names)), np.zeros(len(columns.names))
    methods = {method.name: method for method in columns.space.methods}
    for index, name in enumerate(columns.names):
        method, _, parameter = name.partition(".")
        mean[index], deviation[index] = _belief(methods[method], parameter)
    return Beliefs(mean, deviation)


def _belief(method: MethodDescription, parameter: str) -> tuple[float, float]:
    if not parameter:
        return _FORMATS.get(method.name) or _AT_REFERENCE[method.category]
    if method.category == "healing":
        return (-0.1, 0.2)
    return _SLOPES.get(parameter, (0.0, 0.3))


def time_expectations(columns: Columns) -> Array:
    """What each column is believed to add to the logarithm of an episode's seconds: training, and its steps."""
    methods = {method.name: method for method in columns.space.methods}
    found = np.zeros(len(columns.names))
    for index, name in enumerate(columns.names):
        method, _, parameter = name.partition(".")
        if methods[method].trains and parameter in {"", "steps"}:
            found[index] = math.log(10)  # a hundred steps take ten times an untrained episode, a decade ten times more
    return found


def cost_deviations(columns: Columns, intercept: float, slope: float) -> Array:
    """Standard deviations of what methods and their parameters do to the logarithm of a cost beyond arithmetic."""
    return np.array([slope if "." in name else intercept for name in columns.names])
