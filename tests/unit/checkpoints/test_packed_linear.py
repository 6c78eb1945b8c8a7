"""The layer that stays packed, against a dense product in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from agentic_compression.checkpoints.int4_kernel import kernel_block_rows, pack_nibbles, unpack_nibbles
from agentic_compression.checkpoints.packed_linear import DEQUANTIZE_FROM_ROWS, PackedLinear
from tests.unit.checkpoints.test_quantized import random_weight

SHAPES = [(64, 64, 32), (64, 172, 43), (40, 128, 64), (172, 64, 64), (16, 256, 256), (10, 10, 10), (768, 256, 128)]


def error(layer: PackedLinear, weight: torch.Tensor, rows: int, dtype: torch.dtype) -> float:
    x = torch.randn(rows, layer.in_features, generator=torch.Generator().manual_seed(3)).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert y.shape == (rows, layer.out_features)
    expected = x.double() @ weight.T
    if layer.bias is not None:
        expected += layer.bias.double()
    return float((y.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_product_matches_dense_in_float64(shape: tuple[int, int, int], bits: int, symmetric: bool) -> None:
    rows, columns, group = shape
    quantized = random_weight(rows, columns, bits, group, symmetric)
    dense = quantized.dequantize(torch.float64)
    bias = torch.randn(rows, generator=torch.Generator().manual_seed(4))
    for layer in (PackedLinear(quantized), PackedLinear(quantized, bias)):
        for dtype in (torch.float32, torch.bfloat16):
            assert error(layer, dense, 1, dtype) < 0.02  # activations and result in bfloat16
            assert error(layer, dense, 7, dtype) < 0.02
        assert error(layer, dense, DEQUANTIZE_FROM_ROWS, torch.float32) < 1e-5  # exact weights
        assert error(layer, dense, DEQUANTIZE_FROM_ROWS, torch.bfloat16) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_come_back_exactly(shape: tuple[int, int, int], bits: int, symmetric: bool) -> None:
    weight = random_weight(shape[0], shape[1], bits, shape[2], symmetric, seed=5)
    back = PackedLinear(weight).quantized()
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.scale, weight.scale)
    assert back.scale.dtype == weight.scale.dtype
    if weight.zero_point is None:
        assert back.zero_point is None
    else:
        assert back.zero_point is not None
        assert torch.equal(back.zero_point, weight.zero_point)


@pytest.mark.parametrize("bits", [5, 8])
def test_kernel_multiplies_the_weight_that_is_dequantized(bits: int) -> None:
    """One row at a time: a zero point that was rounded would show where codes lie near it."""
    weight = random_weight(64, 64, bits, 32, symmetric=False, seed=6)
    half = 2 ** (bits - 1)
    points = torch.arange(128).view(64, 2) * 2 * half // 128 - half
    near = (points.repeat_interleave(32, dim=1) + torch.arange(64) % 3 - 1).clamp(-half, half - 1)
    weight = dataclasses.replace(weight, zero_point=points.to(torch.int8), codes=near.to(torch.int8))
    layer = PackedLinear(weight)
    expected = weight.dequantize()
    assert torch.equal(layer.dequantize(), expected)
    found = torch.cat([layer(row[None]) for row in torch.eye(64)]).T
    levels = (found - expected) / weight.scale.float().repeat_interleave(32, dim=1)
    assert float(levels.abs().max()) < 0.01


def test_large_weight_is_multiplied_in_tiles() -> None:
    quantized = random_weight(1100, 512, 4, 64, symmetric=False)
    layer = PackedLinear(quantized)
    assert error(layer, quantized.dequantize(torch.float64), 130, torch.float32) < 1e-5


def test_scales_that_bfloat16_cannot_hold_are_used_exactly() -> None:
    quantized = random_weight(64, 64, 4, 32, symmetric=True)
    quantized = type(quantized)(codes=quantized.codes, scale=quantized.scale.float() * 1.001, zero_point=None, bits=4)
    layer = PackedLinear(quantized)
    assert layer.scales_and_zeros.dtype == torch.float32
    assert error(layer, quantized.dequantize(torch.float64), 1, torch.float32) < 1e-5
    assert torch.equal(layer.quantized().scale, quantized.scale)


def test_memory_is_that_of_packed_weights() -> None:
    layer = PackedLinear(random_weight(768, 256, 4, 64, symmetric=True))
    assert layer.codes.nbytes == 768 * 256 // 2
    assert layer.scales_and_zeros.nbytes == 768 * (256 // 64) * 4


def test_moving_to_another_dtype_keeps_the_kernel_usable() -> None:
    quantized = random_weight(64, 64, 4, 32, symmetric=False)
    layer = PackedLinear(quantized).to(torch.float32)
    assert layer.scales_and_zeros.dtype == torch.bfloat16
    assert layer(torch.ones(2, 3, 64)).shape == (2, 3, 64)


def test_moving_to_float16_and_back_does_not_round_the_scales() -> None:
    quantized = random_weight(32, 64, 4, 32, False)
    tiny = dataclasses.replace(quantized, scale=(quantized.scale.float() * 1e-7).to(torch.bfloat16))
    layer = PackedLinear(tiny)
    kept = layer.scales_and_zeros.clone()
    layer.to(torch.float16).to(torch.bfloat16)
    assert torch.equal(layer.scales_and_zeros, kept)


@pytest.mark.parametrize("block_rows", [32, 64])
def test_nibble_layout_round_trip(block_rows: int) -> None:
    codes = torch.randint(0, 16, (128, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes, block_rows)), codes)


def test_kernel_is_found_on_a_vectorised_cpu() -> None:
    if torch.backends.cpu.get_cpu_capability() not in {"AVX512", "AVX2"}:
        pytest.skip("this CPU has no AVX2, for which ATen lays codes out differently")
    assert kernel_block_rows() in {32, 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chained_layers_of_odd_widths_take_each_others_output(dtype: torch.dtype) -> None:
    first = PackedLinear(random_weight(96, 64, 4, 32, symmetric=True))  # 96 rows are padded to whole blocks
    second = PackedLinear(random_weight(64, 96, 4, 32, symmetric=True))
    assert second(first(torch.ones(5, 64, dtype=dtype))).shape == (5, 64)
