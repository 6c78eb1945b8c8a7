"""NF4 against the paper's construction, a decoder of the stored bytes written here, and bitsandbytes."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest
import torch

from agentic_compression.checkpoints.nf4_kernel import NF4_LEVELS
from agentic_compression.checkpoints.nf4_linear import Nf4Linear, dynamic_levels
from agentic_compression.methods.nf4 import quantize
from tests.unit.methods.bitsandbytes_reference import bitsandbytes

SHAPES = [(64, 64), (64, 172), (172, 64), (5, 7), (40, 96), (3, 128)]


def random_weight(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0] + 31 * shape[1]))
    weight[0] *= 7
    weight[:, ::5] = 0
    return weight.to(dtype)


def decode(stored: dict[str, torch.Tensor]) -> np.ndarray:
    """The weight from the bytes of the format, in float64, one element after the other."""
    state = json.loads(bytes(stored["weight.quant_state.bitsandbytes__nf4"].numpy().tobytes()))
    table = stored["weight.quant_map"].double().numpy()
    maxima = stored["weight.absmax"].double().numpy()
    if "nested_offset" in state:
        nested_table = stored["weight.nested_quant_map"].double().numpy()
        nested = stored["weight.nested_absmax"].double().numpy()
        maxima = np.array(
            [
                nested_table[int(code)] * nested[index // state["nested_blocksize"]] + state["nested_offset"]
                for index, code in enumerate(maxima)
            ]
        )
    count = int(np.prod(state["shape"]))
    packed = stored["weight"].numpy().reshape(-1)
    values = []
    for index in range(count):
        byte = int(packed[index // 2])
        code = byte >> 4 if index % 2 == 0 else byte & 15
        values.append(table[code] * maxima[index // state["blocksize"]])
    return np.array(values).reshape(state["shape"])


def nearest(weight: torch.Tensor) -> np.ndarray:
    """Every element rounded to the nearest level times its block's largest magnitude."""
    flat = weight.double().numpy().reshape(-1)
    result = np.empty_like(flat)
    for start in range(0, flat.size, 64):
        block = flat[start : start + 64]
        absmax = np.abs(block).max()
        grid = np.array(NF4_LEVELS) * absmax
        result[start : start + 64] = [grid[np.abs(grid - value).argmin()] for value in block]
    return result.reshape(weight.shape)


def test_levels_are_the_papers_quantiles() -> None:
    """Appendix E of arXiv:2305.14314: 8 quantiles above zero, 7 below, and zero, divided by the largest."""
    offset = (1 - 1 / (2 * 15) + 1 - 1 / (2 * 16)) / 2
    normal = NormalDist()
    above = [normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-normal.inv_cdf(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.array(sorted([*above, 0.0, *below])) / max(above)
    assert np.allclose(NF4_LEVELS, levels, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("double_quant", [True, False])
def test_stored_bytes_decode_to_the_nearest_levels(shape: tuple[int, int], double_quant: bool) -> None:
    weight = random_weight(shape, torch.bfloat16)
    layer = Nf4Linear(quantize(weight, double_quant))
    decoded = decode(layer.stored_tensors())
    expected = nearest(weight)
    if not double_quant:
        assert np.allclose(decoded, expected, rtol=1e-6, atol=1e-7)
    else:  # a block's scale moves by half a step of its 8-bit table at most, 1 % of the largest of 256
        assert np.abs(decoded - expected).max() < 0.01 * np.abs(expected).max()
    assert np.array_equal(decoded[weight.double().numpy() == 0], np.zeros(int((weight == 0).sum())))
    running = layer.dequantize(torch.float32).double().numpy()
    assert np.allclose(running, decoded, rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != (5, 7)])  # odd counts it compiles for, slowly
@pytest.mark.parametrize("double_quant", [True, False])
def test_bitsandbytes_makes_and_reads_the_same_bytes(shape: tuple[int, int], double_quant: bool) -> None:
    library = bitsandbytes()
    weight = random_weight(shape, torch.bfloat16)
    stored = Nf4Linear(quantize(weight, double_quant)).stored_tensors()
    codes, state = library.functional.quantize_4bit(weight, compress_statistics=double_quant, quant_type="nf4")
    theirs = state.as_dict(packed=True)
    assert torch.equal(stored["weight"], codes)
    assert set(stored) == {"weight", *(f"weight.{name}" for name in theirs)}
    assert torch.equal(stored["weight.quant_map"], theirs["quant_map"])
    if double_quant:
        assert torch.equal(stored["weight.nested_quant_map"], theirs["nested_quant_map"])
        assert float((stored["weight.absmax"].int() - theirs["absmax"].int()).abs().max()) <= 1
    else:
        assert torch.equal(stored["weight.absmax"], theirs["absmax"])
    names = {name.removeprefix("weight."): tensor for name, tensor in stored.items() if name != "weight"}
    read = library.functional.QuantState.from_dict(names, device=torch.device("cpu"))
    read.shape = torch.Size((weight.numel(),))  # its CPU kernel takes the wrong scales where 64 does not divide a row
    restored = library.functional.dequantize_4bit(stored["weight"], read).view(shape)
    assert torch.allclose(restored.double(), torch.from_numpy(decode(stored)), rtol=2**-8, atol=1e-7)


def test_maxima_of_float32_weights_are_rounded_up_so_that_none_is_clipped() -> None:
    weight = random_weight((64, 128))
    made = quantize(weight, double_quant=False)
    exact = weight.view(-1, 64).abs().amax(dim=1)
    assert bool((made.absmax >= exact).all())
    assert bool((made.absmax <= exact * (1 + 2**-7)).all())
    assert torch.equal(made.absmax.to(torch.bfloat16).to(torch.float32), made.absmax)


def test_dynamic_levels_span_seven_decades() -> None:
    levels = dynamic_levels()
    assert levels.shape == (256,)
    assert bool((levels[1:] > levels[:-1]).all())
    assert levels[-1] == 1
    assert (levels == 0).sum() == 1


def test_large_weights_are_rounded_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_weight((37, 172))
    whole = quantize(weight, double_quant=True)
    monkeypatch.setattr("agentic_compression.methods.nf4._CHUNK_BLOCKS", 4)
    parts = quantize(weight, double_quant=True)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.absmax, parts.absmax)
    assert whole.offset == parts.offset
