"""Ranks, and truncated SVD against Eckart and Young's error formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.methods import CompressionContext
from agentic_compression.methods.asvd import AsvdConfig, apply
from agentic_compression.methods.factorization import rank_for, truncated_svd
from tests.unit.methods.tiny_models import built_model


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
@pytest.mark.parametrize("rank", [1, 8, 20])
def test_error_is_that_of_the_discarded_singular_values(rank: int, shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    down, up = truncated_svd(matrix, rank)
    singular = np.linalg.svd(matrix.numpy(), compute_uv=False)
    expected = np.sqrt((singular[rank:] ** 2).sum())
    assert float(torch.linalg.norm(up @ down - matrix)) == pytest.approx(expected, rel=1e-9)
    assert torch.allclose(torch.linalg.norm(up, dim=0), torch.linalg.norm(down, dim=1))  # split evenly


@given(out=st.integers(1, 6000), into=st.integers(1, 6000), tenths=st.integers(1, 9))
def test_rank_is_the_greatest_that_saves_as_much_as_asked(out: int, into: int, tenths: int) -> None:
    rank = rank_for(out, into, tenths / 10)
    allowed = tenths * out * into / 10
    assert 0 <= rank < min(out, into)
    assert rank * (out + into) <= allowed * (1 + 1e-12)
    step = 8 if rank >= 64 else 1
    assert (rank + step) * (out + into) > allowed * (1 - 1e-12)
    assert rank < 64 or rank % 8 == 0


def test_layers_too_small_to_save_anything_are_left_and_noted() -> None:
    model = built_model("llama", heads=1, kv_heads=1, hidden_size=4, intermediate_size=8, head_dim=4)
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    result = apply(model, AsvdConfig(rank_ratio=0.4, alpha=0), CompressionContext())
    assert "model.layers.0.self_attn.q_proj: 4 x 4 is too small to save anything, left as is" in result.notes
    assert torch.equal(result.model.model.layers[0].self_attn.q_proj.weight, before)
