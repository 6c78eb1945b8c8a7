"""Folding a low-rank pair into one dense linear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from agentic_compression.checkpoints.low_rank_linear import LowRankLinear, folded
from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.methods.rtn import RtnConfig, quantize


def pair(bias: bool, dtype: torch.dtype = torch.float32) -> LowRankLinear:
    torch.manual_seed(0)
    return LowRankLinear(nn.Linear(32, 6, bias=False, dtype=dtype), nn.Linear(6, 24, bias=bias, dtype=dtype))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folded_linear_does_what_the_pair_does(bias: bool, dtype: torch.dtype) -> None:
    factors = pair(bias, dtype)
    dense = folded(factors)
    assert type(dense) is nn.Linear
    assert (dense.in_features, dense.out_features, dense.weight.dtype) == (32, 24, dtype)
    up, down = factors.up.weight.tolist(), factors.down.weight.tolist()
    expected = [[sum(up[i][r] * down[r][j] for r in range(6)) for j in range(32)] for i in range(24)]
    assert torch.allclose(dense.weight.double(), torch.tensor(expected, dtype=torch.float64), rtol=5e-3, atol=1e-6)
    assert (dense.bias is not None) == bias
    x = torch.randn(3, 5, 32, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    assert torch.allclose(dense(x), factors(x), atol=tolerance)


def test_a_quantized_factor_counts_as_the_weight_it_stands_for() -> None:
    factors = pair(bias=True)
    down = quantize(factors.down.weight.detach(), RtnConfig(bits=4, group_size=32))
    up = quantize(factors.up.weight.detach(), RtnConfig(bits=4, group_size=-1))
    packed = LowRankLinear(PackedLinear(down), PackedLinear(up, factors.up.bias))
    dense = folded(packed)
    assert torch.allclose(dense.weight, up.dequantize() @ down.dequantize())
    assert torch.equal(dense.bias, factors.up.bias)
