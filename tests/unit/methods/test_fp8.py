"""E4M3 rounding against a decoder of its bytes in float64, compressed-tensors, and both products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import FloatQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from agentic_compression.checkpoints.fp8_linear import LARGEST, Fp8Linear, round_rows_to_e4m3
from agentic_compression.checkpoints.stored import format_of_kind
from agentic_compression.methods import describe_methods, fp8, get_method
from agentic_compression.methods.fp8 import quantize

SHAPES = [(64, 64), (64, 172), (5, 7), (48, 96)]


def decoded(byte: int) -> float:
    """OCP E4M3: sign, 4 exponent bits with bias 7, 3 mantissa bits; no infinities, one NaN."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


TABLE = np.array([decoded(byte) for byte in range(256)])


def nearest(value: float) -> float:
    """The nearest number of the format, of two equally near ones the one with an even mantissa."""
    numbers = [byte for byte in range(256) if not np.isnan(TABLE[byte])]
    best = min(numbers, key=lambda byte: (abs(TABLE[byte] - value), byte & 1))
    return float(TABLE[best])


def random_weight(shape: tuple[int, int]) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    weight[1] = 0
    weight[:, ::4] = 0
    weight[0] *= 1e-6
    return weight


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_become_the_nearest_numbers(shape: tuple[int, int]) -> None:
    weight = random_weight(shape)
    codes, scale = quantize(weight)
    numbers = TABLE[codes.view(torch.uint8).numpy()]
    exact_scale = scale.double().numpy()
    assert np.all(exact_scale >= np.abs(weight.double().numpy()).max(axis=1, keepdims=True) / 448 * (1 - 1e-6))
    assert torch.equal(scale.to(torch.bfloat16).to(torch.float32), scale)
    assert not np.isnan(numbers).any()
    for row, column in np.ndindex(*shape):
        quotient = float(np.float32(weight[row, column].item()) / np.float32(scale[row, 0].item()))
        assert numbers[row, column] == nearest(quotient)


def test_largest_magnitudes_saturate_and_stay_finite() -> None:
    x = torch.tensor([[1e30, -1e30, 3.0], [448.0, 1.0, -448.0], [0.0, 0.0, 0.0]])
    codes, scale = round_rows_to_e4m3(x)
    numbers = TABLE[codes.view(torch.uint8).numpy()]
    assert numbers[0].tolist() == [LARGEST, -LARGEST, 0.0]
    assert numbers[1].tolist() == [448.0, 1.0, -448.0]
    assert numbers[2].tolist() == [0.0, 0.0, 0.0]
    assert bool(torch.isfinite(scale).all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_is_that_of_the_rounded_numbers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    codes, scale = quantize(random_weight(shape))
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(4))
    layer = Fp8Linear(codes, scale, bias)
    x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(5)).to(dtype)
    step = x.double().abs().amax(dim=1, keepdim=True).numpy() / 448
    rounded = np.vectorize(nearest)(x.double().numpy() / step) * step
    weight = TABLE[codes.view(torch.uint8).numpy()] * scale.double().numpy()
    expected = rounded @ weight.T + bias.double().numpy()
    y = layer(x)
    assert y.dtype == dtype
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-3
    assert np.abs(y.double().numpy() - expected).max() < tolerance * np.abs(expected).max()
    assert layer(x[:0]).shape == (0, shape[0])


def test_tensor_core_call_gives_the_same_product() -> None:
    """torch computes the call on CPUs too, so its arguments are tested without the device it is for."""
    codes, scale = quantize(random_weight((48, 96)))
    layer = Fp8Linear(codes, scale)
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(5))
    expected = layer.product(x)
    assert (layer.product_on_tensor_cores(x) - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_stored_form_is_compressed_tensors_own(shape: tuple[int, int]) -> None:
    weight = random_weight(shape)
    layer = Fp8Linear(*quantize(weight))
    stored = layer.stored_tensors()
    group = format_of_kind("fp8").config({"layer": layer.representation}, ["lm_head"])["config_groups"]["group_0"]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**group["weights"]))
    theirs = FloatQuantizationCompressor.compress(
        {"weight": weight, "weight_scale": stored["weight_scale"].float()}, scheme
    )
    assert set(stored) == set(theirs)
    assert torch.equal(stored["weight"].view(torch.uint8), theirs["weight"].view(torch.uint8))
    restored = FloatQuantizationCompressor.decompress(
        {"weight": stored["weight"], "weight_scale": stored["weight_scale"].float()}, scheme
    )
    assert torch.allclose(restored["weight"].float(), layer.dequantize(), rtol=1e-6, atol=0)


def test_gradient_is_that_of_the_dequantized_product() -> None:
    layer = Fp8Linear(*quantize(random_weight((16, 32))))
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.dequantize().sum(dim=0).expand(3, 32), rtol=1e-5, atol=1e-6)


def test_casting_the_model_leaves_the_weight_alone() -> None:
    layer = Fp8Linear(*quantize(random_weight((16, 32))))
    before = layer.dequantize()
    layer.to(torch.float16).to(torch.float32)
    assert torch.equal(layer.dequantize(), before)


@pytest.mark.parametrize(
    ("capabilities", "torch_version", "reason"),
    [
        ([], "2.13.0", "no NVIDIA driver"),
        ([(8, 0)], "2.13.0", "this machine's have 8.0"),
        ([(9, 0)], "2.13.0+cpu", "built for CUDA"),
        ([(8, 0), (8, 9)], "2.13.0", None),
    ],
)
def test_reason_says_what_is_missing(
    capabilities: list[tuple[int, int]], torch_version: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fp8.unavailable.cache_clear()
    monkeypatch.setattr(fp8, "_capabilities", lambda: capabilities)
    monkeypatch.setattr("importlib.metadata.version", lambda name: torch_version)
    try:
        found = fp8.unavailable()
    finally:
        fp8.unavailable.cache_clear()
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert reason in found


def test_offered_exactly_where_nothing_is_missing() -> None:
    description = next(method for method in describe_methods() if method.name == "fp8")
    assert description.available == (description.unavailable_reason is None)
    if description.available:
        assert fp8.unavailable() is None
    else:
        with pytest.raises(Exception, match="fp8 is not available"):
            get_method("fp8")
