"""LLM.int8()'s weight rounding against float64."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.methods.int8 import quantize
from tests.unit.methods.bitsandbytes_reference import bitsandbytes


@given(st.integers(0, 10_000), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(-12, 2))
def test_weights_are_within_half_a_step(seed: int, dtype: torch.dtype, exponent: int) -> None:
    weight = (torch.randn(6, 37, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent).to(dtype)
    codes, scale = quantize(weight)
    exact = weight.double().numpy()
    step = np.abs(exact).max(axis=1) / 127
    assert np.all(scale.double().numpy() >= step * (1 - 1e-6))
    assert np.all(scale.double().numpy() <= step * (1 + 2**-7) + 1e-45)
    assert torch.equal(scale.to(torch.bfloat16).to(torch.float32), scale)
    restored = codes.double().numpy() * scale.double().numpy()[:, None]
    assert np.all(np.abs(restored - exact) <= scale.double().numpy()[:, None] * 0.5001)
    assert codes.abs().max() <= 127


def test_error_is_bitsandbytes_own() -> None:
    library = bitsandbytes()
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(torch.float16)
    codes, statistics, _ = library.functional.int8_vectorwise_quant(weight.clone())
    theirs = library.functional.int8_vectorwise_dequant(codes, statistics).double() - weight.double()
    mine_codes, scale = quantize(weight)
    mine = mine_codes.double() * scale.double()[:, None] - weight.double()
    assert float(mine.norm()) < 1.01 * float(theirs.norm())
    assert float((mine_codes != codes).double().mean()) < 0.3  # the scales differ by up to 2**-7


def test_zeros_stay_zero() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[:, ::3] = 0
    weight[2] = 0
    codes, scale = quantize(weight)
    assert bool((codes[weight == 0] == 0).all())
    assert scale[2] == 1
