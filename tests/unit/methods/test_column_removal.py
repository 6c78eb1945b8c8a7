"""Structured Optimal Brain Surgeon against least squares on explicit data, in float64."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from agentic_compression.errors import CompressionError
from agentic_compression.methods.column_removal import DAMP, ColumnRemoval, damped, repaired

Array = npt.NDArray[np.float64]


def data(columns: int = 10, rows: int = 60, seed: int = 0) -> tuple[Array, Array]:
    """A weight ``(6, columns)`` and correlated inputs ``(rows, columns)``."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(6, columns)), rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns))


def least_squares(weight: Array, x: Array, kept: list[int]) -> tuple[Array, float]:
    """``min |W x - W' x_S|² / rows + λ |W - W'|²`` by numpy's lstsq on stacked rows, and the minimum."""
    damping = DAMP * np.mean((x**2).mean(axis=0))
    stacked = np.vstack([x / np.sqrt(len(x)), np.sqrt(damping) * np.eye(x.shape[1])])
    target = stacked @ weight.T
    solution = np.linalg.lstsq(stacked[:, kept], target, rcond=None)[0]
    return solution.T, float(((target - stacked[:, kept] @ solution) ** 2).sum())


def gram_of(x: Array) -> torch.Tensor:
    return damped(torch.from_numpy(x.T @ x / len(x)), "layer")


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 4, 8], [9]])
def test_repaired_weight_is_the_least_squares_solution(kept: list[int]) -> None:
    weight, x = data()
    expected, _ = least_squares(weight, x, kept)
    made = repaired(torch.from_numpy(weight), gram_of(x), torch.tensor(kept))
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-9, atol=1e-10)


def test_cost_is_the_rise_of_the_least_squares_error() -> None:
    weight, x = data()
    removal = ColumnRemoval(torch.from_numpy(weight), gram_of(x))
    for columns in ([3], [0, 7], [1, 2, 9]):
        _, error = least_squares(weight, x, [index for index in range(10) if index not in columns])
        assert removal.cost(torch.tensor(columns)) == pytest.approx(error, rel=1e-8)
    for index, cost in enumerate(removal.column_costs().tolist()):
        assert cost == pytest.approx(removal.cost(torch.tensor([index])), rel=1e-9)


def test_costs_and_names_stay_right_after_removals() -> None:
    weight, x = data()
    removal = ColumnRemoval(torch.from_numpy(weight), gram_of(x))
    removal.remove(torch.tensor([2, 5]))
    removal.remove(torch.tensor([8]))
    left = [0, 1, 3, 4, 6, 7, 9]
    assert removal.left.tolist() == left
    _, before = least_squares(weight, x, left)
    _, after = least_squares(weight, x, [0, 1, 3, 6, 7, 9])
    assert removal.cost(torch.tensor([4])) == pytest.approx(after - before, rel=1e-7)


def test_first_removal_is_the_best_of_all() -> None:
    weight, x = data(seed=2)
    removal = ColumnRemoval(torch.from_numpy(weight), gram_of(x))
    pairs = list(combinations(range(10), 2))
    errors = [least_squares(weight, x, [index for index in range(10) if index not in pair])[1] for pair in pairs]
    costs = [removal.cost(torch.tensor(pair)) for pair in pairs]
    assert int(np.argmin(costs)) == int(np.argmin(errors))


def test_dead_inputs_cost_nothing_and_do_not_break_the_inverse() -> None:
    weight, x = data()
    x[:, 4] = 0
    removal = ColumnRemoval(torch.from_numpy(weight), gram_of(x))
    assert int(removal.column_costs().argmin()) == 4
    silent = ColumnRemoval(torch.from_numpy(weight), gram_of(np.zeros_like(x)))
    assert bool(torch.isfinite(silent.column_costs()).all())


def test_infinite_activations_are_refused_by_name() -> None:
    with pytest.raises(CompressionError, match=r"model\.layers\.0 gets NaN or infinite activations"):
        damped(torch.full((4, 4), float("nan")), "model.layers.0")
