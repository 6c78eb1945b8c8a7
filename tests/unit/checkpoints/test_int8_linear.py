"""The LLM.int8() layer against the paper's formula in float64 with plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from agentic_compression.checkpoints.int8_linear import Int8Linear
from agentic_compression.methods.int8 import quantize
from tests.unit.methods.bitsandbytes_reference import bitsandbytes

SHAPES = [(64, 64), (64, 172), (172, 64), (5, 7), (33, 128)]


def layer_of(rows: int, columns: int, threshold: float = 6.0, bias: bool = False) -> Int8Linear:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    codes, scale = quantize(torch.randn(rows, columns, generator=generator))
    return Int8Linear(codes, scale, torch.randn(rows, generator=generator) if bias else None, threshold)


def activations(rows: int, columns: int, outliers: bool) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).clamp(-4, 4)
    if outliers:
        x[0, 1], x[-1, 3] = 40.0, -6.0  # the threshold itself counts
    return x


def llm_int8(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, threshold: float) -> np.ndarray:
    """Section 3 of arXiv:2208.07339, one element after the other."""
    rows, columns = x.shape
    apart = [threshold > 0 and bool((np.abs(x[:, column]) >= threshold).any()) for column in range(columns)]
    result = np.zeros((rows, codes.shape[0]))
    for row in range(rows):
        inside = [column for column in range(columns) if not apart[column]]
        step = max(abs(x[row, column]) for column in inside) / 127
        rounded = {column: np.rint(x[row, column] / step) for column in inside}
        for output in range(codes.shape[0]):
            integer = sum(rounded[column] * float(codes[output, column]) for column in inside)
            kept = sum(x[row, column] * float(codes[output, column]) for column in range(columns) if apart[column])
            result[row, output] = scale[output] * (integer * step + kept)
    return result


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("outliers", [False, True])
def test_integer_product_is_the_papers(shape: tuple[int, int], threshold: float, outliers: bool) -> None:
    layer = layer_of(*shape, threshold=threshold)
    x = activations(6, shape[1], outliers)
    expected = llm_int8(x.double().numpy(), layer.codes.numpy(), layer.scale.double().numpy(), threshold)
    assert (
        relative(layer.product_of_integers(x), torch.from_numpy(expected)) < 2e-3
    )  # a code at an exact half may differ
    assert relative(layer.product_of_integers(x.to(torch.bfloat16)), torch.from_numpy(expected)) < 2e-2


def test_outliers_apart_lose_less_than_without_threshold() -> None:
    x = activations(16, 128, outliers=True)
    exact = layer_of(33, 128).dequantize(torch.float64)
    apart = relative(layer_of(33, 128, 6.0).product_of_integers(x), x.double() @ exact.T)
    together = relative(layer_of(33, 128, 0.0).product_of_integers(x), x.double() @ exact.T)
    assert apart < 0.3 * together


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 16, 600])
def test_every_path_is_close_to_the_dequantized_product(shape: tuple[int, int], dtype: torch.dtype, rows: int) -> None:
    layer = layer_of(*shape, bias=True)
    x = activations(rows, shape[1], outliers=rows > 3).to(dtype)
    assert layer.bias is not None
    y = layer(x[None])
    assert y.dtype == dtype
    assert y.shape == (1, rows, shape[0])
    assert relative(y[0], x.double() @ layer.dequantize(torch.float64).T + layer.bias.double()) < 0.02


def test_weights_are_dequantized_where_integers_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    layer = layer_of(33, 128)
    x = activations(5, 128, outliers=True)
    assert relative(layer(x), x.double() @ layer.dequantize(torch.float64).T) < 1e-5


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_bitsandbytes_operators_agree(threshold: float) -> None:
    bitsandbytes()
    layer = layer_of(64, 128, threshold)
    x = activations(16, 128, outliers=True)
    expected = llm_int8(x.double().numpy(), layer.codes.numpy(), layer.scale.double().numpy(), threshold)
    assert relative(layer.product_by_bitsandbytes(x), torch.from_numpy(expected)) < 1e-2


def test_bitsandbytes_reads_the_stored_weight() -> None:
    library = bitsandbytes()
    layer = layer_of(64, 172)
    stored = layer.stored_tensors()
    read = library.functional.int8_vectorwise_dequant(stored["weight"], stored["SCB"])
    assert torch.allclose(read, layer.dequantize(), rtol=1e-6, atol=0)


def test_rows_of_zeros_and_no_rows_at_all() -> None:
    layer = layer_of(64, 128)
    assert torch.equal(layer.product_of_integers(torch.zeros(20, 128)), torch.zeros(20, 64))
    assert layer(torch.zeros(2, 0, 128)).shape == (2, 0, 64)


def test_not_a_number_stays_visible() -> None:
    layer = layer_of(64, 128)
    for rows in (1, 600):
        x = activations(rows, 128, outliers=False)
        x[0, 5] = float("nan")
        assert bool(layer(x)[0].isnan().all())


def test_gradient_is_that_of_the_dequantized_product() -> None:
    layer = layer_of(33, 128)
    x = activations(40, 128, outliers=False).requires_grad_()
    layer(x).square().sum().backward()
    y = layer(x.detach())
    assert x.grad is not None
    assert torch.allclose(x.grad, 2 * y @ layer.dequantize(), rtol=1e-4, atol=1e-4)


def test_casting_the_model_leaves_the_weight_alone() -> None:
    layer = layer_of(64, 128)
    before = layer.dequantize()
    layer.to(torch.float16).to(torch.float32)
    assert layer.scale.dtype == torch.bfloat16
    assert torch.equal(layer.dequantize(), before)
