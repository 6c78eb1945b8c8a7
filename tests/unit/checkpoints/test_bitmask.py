"""Sparse weights on disk."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.checkpoints.bitmask import compress_bitmask, decompress_bitmask, pays_off


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), sparsity=st.floats(0, 1), seed=st.integers(0, 99))
def test_bitmask_round_trip(rows: int, columns: int, sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(torch.bfloat16)
    weight[torch.rand(rows, columns, generator=generator) < sparsity] = 0
    assert torch.equal(decompress_bitmask(compress_bitmask(weight)), weight)


def test_bitmask_pays_off_from_thirty_percent_zeros() -> None:
    weight = torch.ones(100, 10)
    assert not pays_off(weight)
    weight.view(-1)[:299] = 0
    assert not pays_off(weight)
    weight.view(-1)[:300] = 0
    assert pays_off(weight)
