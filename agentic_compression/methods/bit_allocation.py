"""Choosing a width for every layer: least predicted damage within a number of bytes, exactly.

A multiple-choice knapsack. Dynamic programming over the layers keeps the states (bytes, cost) that no other state
beats in both. A state is also dropped when a lower bound of every completion, from Lagrangian relaxation with the best
multiplier (Fisher 1981), exceeds the cost of a solution already known; that leaves few states and loses no optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentic_compression.errors import CompressionError

__all__ = ["Option", "allocate", "stored_bytes"]

_BISECTIONS = 100
_SLACK = 1e-9  # relative; float64 sums in another order must not drop the optimum


@dataclass(frozen=True)
class Option:
    """One way to quantize one layer.

    Attributes:
        bits: of a code.
        group_size: weights that share a scale, a divisor of the layer's width.
        size_bytes: as stored, scales and zero points included.
        cost: predicted damage, finite.
    """

    bits: int
    group_size: int
    size_bytes: int
    cost: float


def stored_bytes(rows: int, columns: int, bits: int, group_size: int) -> int:
    """Bytes of a packed asymmetric weight: 32-bit words of codes a row, 16-bit scales, 32-bit words of zero points.

    Args:
        rows: out_features.
        columns: in_features.
        bits: of a code.
        group_size: weights that share a scale; divides ``columns``.
    """
    groups = columns // group_size
    return 4 * rows * -(-columns * bits // 32) + 2 * rows * groups + 4 * -(-rows * bits // 32) * groups


def allocate(options: Sequence[Sequence[Option]], budget_bytes: int) -> list[Option]:
    """One option a layer with the least total cost within the budget.

    Args:
        options: by layer, at least one each.
        budget_bytes: of all layers together.

    Raises:
        CompressionError: when even the smallest options exceed the budget.
    """
    least = sum(min(option.size_bytes for option in layer) for layer in options)
    if least > budget_bytes:
        raise CompressionError(
            f"the layers need at least {least:,} bytes at the smallest width and groups, got a budget of "
            f"{budget_bytes:,}; raise the budget or allow larger groups"
        )
    sizes = [np.array([option.size_bytes for option in layer], dtype=np.int64) for layer in options]
    costs = [np.array([option.cost for option in layer], dtype=np.float64) for layer in options]
    multiplier, known = _relaxed(sizes, costs, budget_bytes)
    chosen = _search(sizes, costs, budget_bytes, multiplier, known)
    return [layer[index] for layer, index in zip(options, chosen, strict=True)]


def _relaxed(sizes: list[NDArray[np.int64]], costs: list[NDArray[np.float64]], budget: int) -> tuple[float, float]:
    """The price of a byte at which each layer's best option fits, as low as can be, and the cost of that solution."""

    def solution(price: float) -> tuple[int, float]:
        total, cost = 0, 0.0
        for size, damage in zip(sizes, costs, strict=True):
            priced = damage + price * size
            best = np.lexsort((size, priced))[0]
            total, cost = total + int(size[best]), cost + float(damage[best])
        return total, cost

    total, cost = solution(0.0)
    if total <= budget:
        return 0.0, cost
    low, high = 0.0, 1e-12
    while solution(high)[0] > budget:
        low, high = high, high * 16
        if high > 1e300:  # options differ in nothing a price could weigh: take the smallest of each layer
            return 0.0, sum(
                float(damage[np.lexsort((damage, size))[0]]) for size, damage in zip(sizes, costs, strict=True)
            )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if solution(middle)[0] > budget else (low, middle)
    return high, solution(high)[1]


def _search(
    sizes: list[NDArray[np.int64]],
    costs: list[NDArray[np.float64]],
    budget: int,
    multiplier: float,
    known: float,
) -> list[int]:
    layers = len(sizes)
    rest_size, rest_bound = [0] * (layers + 1), [0.0] * (layers + 1)
    for layer in range(layers - 1, -1, -1):
        rest_size[layer] = rest_size[layer + 1] + int(sizes[layer].min())
        rest_bound[layer] = rest_bound[layer + 1] + float((costs[layer] + multiplier * sizes[layer]).min())
    slack = _SLACK * (abs(known) + multiplier * budget + sum(float(np.abs(cost).max()) for cost in costs))
    used, cost = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float64)
    parents: list[NDArray[np.int64]] = []
    picks: list[NDArray[np.int64]] = []
    for layer in range(layers):
        many = len(sizes[layer])
        new_used = (used[:, None] + sizes[layer]).ravel()
        new_cost = (cost[:, None] + costs[layer]).ravel()
        bound = new_cost + rest_bound[layer + 1] - multiplier * (budget - new_used)
        index = np.flatnonzero((new_used <= budget - rest_size[layer + 1]) & (bound <= known + slack))
        index = index[np.lexsort((new_cost[index], new_used[index]))]
        best_before = np.concatenate(([np.inf], np.minimum.accumulate(new_cost[index])[:-1]))
        index = index[new_cost[index] < best_before]
        used, cost = new_used[index], new_cost[index]
        parents.append(index // many)
        picks.append(index % many)
    state = int(np.argmin(cost))
    chosen = []
    for layer in range(layers - 1, -1, -1):
        chosen.append(int(picks[layer][state]))
        state = int(parents[layer][state])
    return chosen[::-1]
