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


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_least_error_takes_the_best_of_thirteen_clipped_grids(bits: int, symmetric: bool) -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(bits)) ** 3
    made = quantize(weight, RtnConfig(bits=bits, group_size=32, symmetric=symmetric, least_error=True)).dequantize()
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for row, restored in zip(weight.double().numpy(), made.double().numpy(), strict=True):
        errors = []
        for step in range(13):
            smallest, largest = min(row.min(), 0) * (1 - 0.04 * step), max(row.max(), 0) * (1 - 0.04 * step)
            span = 2 * max(-smallest, largest) if symmetric else largest - smallest
            scale = float(bfloat16(np.array(span / (high - low))))
            zero = 0 if symmetric else np.clip(np.rint(-smallest / scale) + low, low, high)
            codes = np.clip(np.rint(row / scale) + zero, low, high)
            errors.append((np.abs(scale * (codes - zero) - row) ** 2.4).sum())
        assert (np.abs(restored - row) ** 2.4).sum() == pytest.approx(min(errors), rel=1e-5)


def test_parts_of_a_layer_are_rounded_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 64, generator=torch.Generator().manual_seed(9))
    whole = quantize(weight, RtnConfig(group_size=32))
    monkeypatch.setattr("agentic_compression.methods.rtn._ELEMENTS_AT_ONCE", 5 * 64)
    parts = quantize(weight, RtnConfig(group_size=32))
    assert torch.equal(parts.codes, whole.codes)
    assert torch.equal(parts.scale, whole.scale)
    assert parts.zero_point is not None
    assert whole.zero_point is not None
    assert torch.equal(parts.zero_point, whole.zero_point)
