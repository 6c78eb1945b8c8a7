"""The NF4 layer: both its layouts and both its products."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch

from agentic_compression.checkpoints.nf4_kernel import nf4_kernel, pack_rows, unpack_rows
from agentic_compression.checkpoints.nf4_linear import Nf4Linear, Nf4Tensor
from agentic_compression.methods.nf4 import quantize

SHAPES = [(64, 64), (40, 128), (64, 96), (64, 172), (172, 64), (5, 7), (2100, 192)]
WITH_KERNEL = [(64, 64), (40, 128), (64, 96), (172, 64), (2100, 192)]


def weight_of(shape: tuple[int, int], double_quant: bool = True) -> Nf4Tensor:
    made: Nf4Tensor = quantize(torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])), double_quant)
    return made


def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentic_compression.checkpoints.nf4_linear.nf4_kernel", lambda: None)


def needs_kernel() -> None:
    if nf4_kernel() is None:
        pytest.skip("bitsandbytes 0.50 or AVX-512 BF16 is missing")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product_matches_dense_in_float64(
    shape: tuple[int, int], kernel: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        without_kernel(monkeypatch)
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(4))
    layer = Nf4Linear(weight_of(shape), bias)
    dense = layer.dequantize().double()
    for rows in (1, 5, 40):
        x = torch.randn(2, rows, shape[1], generator=torch.Generator().manual_seed(rows)).to(dtype)
        y = layer(x)
        assert y.dtype == dtype
        expected = x.double() @ dense.T + bias.double()
        exact = dtype == torch.float32 and not layer.for_kernel
        assert (y.double() - expected).abs().max() < (1e-5 if exact else 0.02) * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double_quant", [True, False])
def test_codes_and_maxima_come_back_exactly(shape: tuple[int, int], double_quant: bool) -> None:
    weight = weight_of(shape, double_quant)
    back = Nf4Linear(weight).quantized()
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.absmax, weight.absmax)
    assert back.absmax.dtype == weight.absmax.dtype
    assert (back.offset, back.shape, back.dtype) == (weight.offset, weight.shape, weight.dtype)
    assert (back.nested_absmax is None) == (not double_quant)


@pytest.mark.parametrize("shape", WITH_KERNEL)
def test_kernel_is_used_and_agrees_with_the_dequantized_product(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_kernel()
    layer = Nf4Linear(weight_of(shape))
    assert layer.for_kernel
    dense = layer.dequantize()
    without_kernel(monkeypatch)
    plain = Nf4Linear(weight_of(shape))
    assert not plain.for_kernel
    assert torch.equal(plain.dequantize(), dense)


def test_layout_follows_where_the_kernel_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_kernel()
    layer = Nf4Linear(weight_of((64, 96)))
    dense = layer.dequantize()
    without_kernel(monkeypatch)
    layer.to(torch.float32)
    assert not layer.for_kernel
    assert torch.equal(layer.dequantize(), dense)
    monkeypatch.undo()
    layer.to(torch.float16)
    assert layer.for_kernel
    assert layer.absmax.dtype == torch.bfloat16
    assert layer.nested_absmax is not None
    assert layer.nested_absmax.dtype == torch.float32
    assert torch.equal(layer.dequantize(), dense)


def test_rows_are_packed_and_unpacked() -> None:
    codes = torch.randint(0, 16, (96, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack_rows(codes)
    assert torch.equal(unpack_rows(packed), codes)
    block, pair, row, feature = 1, 3, 5, 1
    byte = int(packed[block, pair, 2 * row + feature])
    assert byte & 15 == codes[32 * block + row, 2 * pair + feature]
    assert byte >> 4 == codes[32 * block + row + 16, 2 * pair + feature]


def test_kernel_is_left_alone_when_the_library_is_missing_or_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    nf4_kernel.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", lambda name: None)
            assert nf4_kernel() is None
        nf4_kernel.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(importlib.metadata, "version", lambda name: "0.51.0")
            assert nf4_kernel() is None
    finally:
        nf4_kernel.cache_clear()


def test_gradient_is_that_of_the_dequantized_product() -> None:
    layer = Nf4Linear(weight_of((64, 64)))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer(x).square().sum().backward()
    y = layer(x.detach())
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 * y @ layer.dequantize(), rtol=1e-4, atol=1e-4)


def test_casting_the_model_leaves_the_weight_alone() -> None:
    for shape in ((64, 64), (64, 172)):
        layer = Nf4Linear(quantize(1e-8 * torch.randn(shape, generator=torch.Generator().manual_seed(0)), True))
        before = layer.dequantize()
        layer.to(torch.float16).to(torch.float32)
        assert torch.equal(layer.dequantize(), before)


def test_no_rows_at_all() -> None:
    for shape in ((64, 64), (64, 172)):
        assert Nf4Linear(weight_of(shape))(torch.zeros(2, 0, shape[1])).shape == (2, 0, shape[0])


def test_rows_of_broken_blocks_are_not_promised_to_plain_transformers() -> None:
    assert not Nf4Linear(weight_of((32, 128))).only_here
    assert Nf4Linear(weight_of((32, 172))).only_here
