"""Truncated SVD against Eckart and Young's error formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentic_compression.methods.low_rank import factorize, rank_for
from tests.unit.methods.test_gptq import correlated, output_error


@pytest.mark.parametrize("rank", [1, 8, 20])
def test_error_is_that_of_the_discarded_singular_values(rank: int) -> None:
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    down, up = factorize(weight, rank)
    assert down.shape == (rank, 32)
    assert up.shape == (48, rank)
    singular = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    expected = np.sqrt((singular[rank:] ** 2).sum())
    assert float(torch.linalg.norm(up @ down - weight.double())) == pytest.approx(expected, rel=1e-9)


def test_whitened_output_error_is_that_of_the_discarded_singular_values() -> None:
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    gram = correlated(32)
    down, up = factorize(weight, 12, gram)
    damped = gram.double() + 1e-4 * gram.double().diagonal().mean() * torch.eye(32, dtype=torch.float64)
    values, vectors = np.linalg.eigh(damped.numpy())
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T  # another square root than Cholesky's
    singular = np.linalg.svd(weight.double().numpy() @ root, compute_uv=False)
    error = output_error(up @ down - weight.double(), damped)
    assert error == pytest.approx((singular[12:] ** 2).sum(), rel=1e-8)
    plain_down, plain_up = factorize(weight, 12)
    assert error < output_error(plain_up @ plain_down - weight.double(), damped)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("out_features", "in_features"), [(256, 256), (768, 256), (64, 172), (2048, 5632)])
def test_factors_always_save_parameters(out_features: int, in_features: int, ratio: float) -> None:
    rank = rank_for(out_features, in_features, ratio)
    assert rank >= 1
    kept = rank * (out_features + in_features) / (out_features * in_features)
    assert kept <= ratio + 1e-9
    assert kept > ratio - 9 * (out_features + in_features) / (out_features * in_features)
