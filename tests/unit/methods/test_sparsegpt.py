"""SparseGPT against Optimal Brain Surgeon's formulas, by column, without Cholesky, without blocked updates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.methods import CompressionContext
from agentic_compression.methods.layerwise import walk_blocks
from agentic_compression.methods.linear_layers import target_linears
from agentic_compression.methods.sparsegpt import SparseGptConfig, apply, prune_with_gram
from agentic_compression.methods.sparsity import lowest
from tests.unit.methods.tiny_models import random_windows, tiny_model


def reference(weight: np.ndarray, gram: np.ndarray, config: SparseGptConfig) -> np.ndarray:
    """Zero column i where the mask says so, spread the error with row i of the inverse Hessian, remove i; float64."""
    w = weight.copy()
    rows, columns = w.shape
    inverse = np.linalg.inv(gram + config.damp_percent * np.mean(np.diag(gram)) * np.eye(columns))
    inverses = []  # at index i that of the columns from i on, all before them eliminated
    for i in range(columns):
        inverses.append(inverse.copy())
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    mask = np.zeros(w.shape, dtype=bool)
    for i in range(columns):
        if config.pattern == "2:4" and i % 4 == 0:
            for row in range(rows):
                scores = [w[row, j] ** 2 / inverses[j][j, j] for j in range(i, i + 4)]
                mask[row, [i + place for place in np.argsort(scores, kind="stable")[:2]]] = True
        elif config.pattern == "unstructured" and i % 128 == 0:
            end = min(i + 128, columns)
            scores = np.stack([w[:, j] ** 2 / inverses[j][j, j] for j in range(i, end)], axis=1)
            for pool in [slice(0, rows)] if config.compare == "block" else [slice(r, r + 1) for r in range(rows)]:
                members = pool.stop - pool.start
                count = round(config.sparsity * members * end) - round(config.sparsity * members * i)
                chosen = np.zeros(members * (end - i), dtype=bool)
                chosen[np.argsort(scores[pool].ravel(), kind="stable")[:count]] = True
                mask[pool, i:end] = chosen.reshape(members, end - i)
        for row in range(rows):
            if mask[row, i]:
                w[row, i + 1 :] -= w[row, i] / inverses[i][i, i] * inverses[i][i, i + 1 :]
                w[row, i] = 0
    return w


def correlated(columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64) @ mixing
    return x.T @ x / (4 * columns)


CONFIGS = [
    SparseGptConfig(sparsity=0.5),
    SparseGptConfig(sparsity=0.3, compare="block"),
    SparseGptConfig(sparsity=0.7, compare="block", damp_percent=0.1),
    SparseGptConfig(pattern="2:4"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("columns", [64, 172, 300])
def test_masks_and_weights_match_the_reference(columns: int, config: SparseGptConfig) -> None:
    weight = torch.randn(9, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gram = correlated(columns)
    made = prune_with_gram(weight, gram, config).numpy()
    expected = reference(weight.numpy(), gram.numpy(), config)
    assert np.array_equal(made == 0, expected == 0)
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-8)


def test_float32_is_close_to_float64() -> None:
    weight = torch.randn(32, 172, generator=torch.Generator().manual_seed(2))
    gram = correlated(172)
    exact = prune_with_gram(weight.double(), gram, SparseGptConfig())
    made = prune_with_gram(weight, gram.float(), SparseGptConfig())
    assert made.dtype == torch.float32
    assert float(((made == 0) == (exact == 0)).float().mean()) > 0.99
    assert error(made.double() - weight, gram) == pytest.approx(error(exact - weight, gram), rel=0.02)


def error(difference: torch.Tensor, gram: torch.Tensor) -> float:
    return float(torch.einsum("oi,ij,oj->", difference, gram, difference))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_output_error_is_below_that_of_the_same_mask_without_repair(pattern: str) -> None:
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gram = correlated(128)
    made = prune_with_gram(weight, gram, SparseGptConfig(pattern=pattern))
    masked = weight.masked_fill(made == 0, 0)
    assert error(made - weight, gram) < 0.7 * error(masked - weight, gram)


def test_identity_hessian_gives_plain_magnitude() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    made = prune_with_gram(weight, torch.eye(64), SparseGptConfig(sparsity=0.5))
    assert torch.equal(made, weight.masked_fill(lowest(weight.abs(), 32), 0))


@settings(deadline=None, max_examples=40)
@given(
    sparsity=st.integers(1, 9),
    compare=st.sampled_from(["row", "block"]),
    dead=st.sets(st.integers(0, 139), max_size=30),
    zeros=st.sets(st.integers(0, 699), max_size=200),
)
def test_counts_are_exact_and_zeros_stay(sparsity: int, compare: str, dead: set[int], zeros: set[int]) -> None:
    weight = torch.randn(5, 140, generator=torch.Generator().manual_seed(5))
    weight.view(-1)[sorted(zeros)] = 0
    gram = correlated(140).float()
    columns = sorted(dead)
    gram[columns], gram[:, columns] = 0, 0
    made = prune_with_gram(weight, gram, SparseGptConfig(sparsity=sparsity / 10, compare=compare))
    assert bool(torch.isfinite(made).all())
    assert bool((made[weight == 0] == 0).all())
    found, wanted = int((made == 0).sum()), round(sparsity / 10 * 140) * 5
    assert found == wanted if not zeros else wanted <= found <= wanted + len(zeros)
    if not zeros and compare == "row":
        assert (made == 0).sum(dim=1).tolist() == [wanted // 5] * 5
    if columns and sparsity == 9:  # dead inputs go first
        assert bool((made[:, columns] == 0).all())


def test_four_that_have_three_zeros_keep_them() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(6))
    weight[:, 1::4] = weight[:, 2::4] = weight[:, 3::4] = 0
    made = prune_with_gram(weight, correlated(64).float(), SparseGptConfig(pattern="2:4"))
    assert bool((made[:, 0::4] != 0).all())
    assert bool((made.view(6, -1, 4)[..., 1:] == 0).all())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_every_linear_of_a_model_has_the_pattern(pattern: str) -> None:
    context = CompressionContext(calibration=random_windows())
    result = apply(tiny_model("odd", torch.bfloat16), SparseGptConfig(sparsity=0.6, pattern=pattern), context)
    assert result.notes == ()
    for _, linear in target_linears(result.model):
        assert linear.weight.dtype == torch.bfloat16
        if pattern == "2:4":
            assert bool(((linear.weight.view(-1, 4) == 0).sum(dim=1) == 2).all())
        else:
            assert (linear.weight == 0).sum(dim=1).unique().tolist() == [round(0.6 * linear.in_features)]


def test_a_hessian_that_needs_more_damping_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def indefinite(*given: Any, **options: Any) -> Iterator[Any]:
        for layers in walk_blocks(*given, **options):
            for _, _, gram in layers:
                gram.matrix[0, 1] = gram.matrix[1, 0] = 1.02 * gram.diagonal[:2].prod().sqrt()
            yield layers

    monkeypatch.setattr("agentic_compression.methods.layerwise.walk_blocks", indefinite)
    result = apply(tiny_model(), SparseGptConfig(), CompressionContext(calibration=random_windows()))
    assert len(result.notes) == 14
    assert all("_proj: damped with " in note for note in result.notes)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in result.model.parameters())
