"""Round-to-nearest against the formula in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentic_compression.methods.linear_layers import fitting_group_size
from agentic_compression.methods.rtn import RtnConfig, quantize


def bfloat16(value: np.ndarray) -> np.ndarray:
    """Round to 8 significant bits, half to even."""
    mantissa, exponent = np.frexp(value)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)


def reference(weight: np.ndarray, bits: int, group: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, columns = weight.shape
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = np.zeros((rows, columns))
    scales = np.zeros((rows, columns // group))
    zeros = np.zeros((rows, columns // group))
    for row in range(rows):
        for index in range(columns // group):
            w = weight[row, index * group : (index + 1) * group]
            if symmetric:
                scale = bfloat16(np.float64(2 * np.abs(w).max() / (2**bits - 1)))
                zero = 0.0
            else:
                smallest, largest = min(w.min(), 0), max(w.max(), 0)
                scale = bfloat16(np.float64((largest - smallest) / (2**bits - 1)))
                zero = np.clip(np.rint(-smallest / scale) + low, low, high)
            scales[row, index], zeros[row, index] = scale, zero
            codes[row, index * group : (index + 1) * group] = np.clip(np.rint(w / scale) + zero, low, high)
    return codes, scales, zeros


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_match_reference(bits: int, group_size: int, symmetric: bool) -> None:
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(bits))
    config = RtnConfig(bits=bits, group_size=group_size, symmetric=symmetric)
    made = quantize(weight, config)
    group = 128 if group_size == -1 else group_size
    codes, scales, zeros = reference(weight.double().numpy(), bits, group, symmetric)
    assert np.array_equal(made.scale.double().numpy(), scales)
    different = (made.codes.numpy() != codes).mean()
    assert different < 1e-3  # float32 against float64 at exact halves only
    assert (made.zero_point is None) == symmetric
    if made.zero_point is not None:
        assert np.array_equal(made.zero_point.numpy(), zeros)


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_stay_zero_and_error_is_below_half_a_step(symmetric: bool) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight[:, ::3] = 0
    weight[3] = 0
    made = quantize(weight, RtnConfig(bits=4, group_size=32, symmetric=symmetric))
    restored = made.dequantize()
    assert torch.equal(restored == 0, (weight == 0) | (restored == 0))
    assert bool((restored[weight == 0] == 0).all())
    step = made.scale.float().repeat_interleave(32, dim=1)
    assert bool(((restored - weight).abs() <= 0.56 * step).all())  # half, and the rounding of the scale itself


@pytest.mark.parametrize(
    ("width", "asked", "used"),
    [(256, 64, 64), (172, 32, 43), (172, 64, 86), (172, 128, 172), (64, 128, 64), (96, -1, 96), (97, 32, 97)],
)
def test_group_size_falls_back_to_next_divisor(width: int, asked: int, used: int) -> None:
    assert fitting_group_size(width, asked) == used
