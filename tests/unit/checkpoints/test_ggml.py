"""ggml's quantizers against gguf-py's own reading of the blocks, and what they must never be given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agentic_compression.checkpoints.ggml import GGML_TYPES, block_width, quantize_rows, row_bytes
from agentic_compression.errors import CompressionError

gguf = pytest.importorskip("gguf", reason="the gguf package reads the blocks back")
pytest.importorskip("xllamacpp", reason="the quantizers are in its shared object")

# Relative root mean square error on normally distributed weights that each type keeps below; for the k-quants twice the
# error of an ideal uniform grid of as many levels over a block's range.
ERROR = {
    "F32": 0.0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 8e-3, "Q6_K": 0.025, "Q5_K": 0.05, "Q5_1": 0.05, "Q5_0": 0.06,
    "Q4_K": 0.1, "Q4_1": 0.1, "Q4_0": 0.11, "IQ4_NL": 0.1, "IQ4_XS": 0.1, "Q3_K": 0.2, "IQ3_S": 0.18,
    "IQ3_XXS": 0.25, "Q2_K": 0.35, "IQ2_S": 0.35, "IQ2_XS": 0.4, "IQ2_XXS": 0.45,
}  # fmt: skip


def normal(rows: int = 24, width: int = 512, seed: int = 0) -> torch.Tensor:
    return torch.randn((rows, width), generator=torch.Generator().manual_seed(seed))


def read_back(blocks: NDArray[Any], name: str) -> NDArray[Any]:
    values: NDArray[Any] = gguf.dequantize(blocks, gguf.GGMLQuantizationType(GGML_TYPES[name]))
    return values


def everywhere(width: int = 512) -> NDArray[Any]:
    return np.ones(width, dtype=np.float32)


def test_numbers_names_and_widths_are_those_of_the_format() -> None:
    for name, number in GGML_TYPES.items():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        assert gguf.GGMLQuantizationType(number).name == name
        assert block_width(name) == block
        assert row_bytes(name, 512) == 512 // block * size


@pytest.mark.parametrize("name", GGML_TYPES)
def test_blocks_read_back_close_to_the_weights(name: str) -> None:
    weight = normal()
    restored = read_back(quantize_rows(weight, name, np.arange(24), everywhere()), name)
    error = float(np.sqrt(((restored - weight.numpy()) ** 2).mean()))
    assert error <= ERROR[name]
    assert name == "F32" or error > ERROR[name] / 8  # a bound that always holds would test nothing


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ3_S"])
def test_rows_come_in_the_order_asked_whatever_the_threads(name: str) -> None:
    weight = normal(rows=64)
    order = np.random.default_rng(0).permutation(64)
    straight = quantize_rows(weight, name, np.arange(64))
    assert np.array_equal(quantize_rows(weight, name, order), straight[order])
    assert np.array_equal(quantize_rows(weight, name, np.arange(64), threads=3), straight)


def test_weights_of_parts_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(rows=50)
    whole = quantize_rows(weight, "Q4_K", np.arange(50), everywhere())
    monkeypatch.setattr("agentic_compression.checkpoints.ggml._ROWS_AT_ONCE", 7 * 512)
    assert np.array_equal(quantize_rows(weight, "Q4_K", np.arange(50), everywhere(), threads=2), whole)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "IQ4_XS"])
def test_importance_moves_the_error_to_columns_that_matter_less(name: str) -> None:
    weight = normal(rows=64)
    importance = np.where(np.arange(512) % 4 == 0, 100.0, 0.01).astype(np.float32)
    plain = (read_back(quantize_rows(weight, name, np.arange(64)), name) - weight.numpy()) ** 2
    weighed = (read_back(quantize_rows(weight, name, np.arange(64), importance), name) - weight.numpy()) ** 2
    assert (weighed * importance).mean() < 0.9 * (plain * importance).mean()


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"])
def test_importance_with_zeros_does_not_abort(name: str) -> None:
    weight = normal()
    weight[:, :256] = 0
    importance = everywhere()
    importance[:300] = 0
    for values in (importance, np.zeros(512, dtype=np.float32)):
        restored = read_back(quantize_rows(weight, name, np.arange(24), values), name)
        assert np.isfinite(restored).all()
        assert np.abs(restored[:, :256]).max() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weight = normal()
    weight[3, 7] = value
    with pytest.raises(CompressionError, match="NaN or infinity"):
        quantize_rows(weight, "Q4_K", np.arange(24))


def test_importance_must_fit_and_be_finite() -> None:
    for wrong in (everywhere(256), np.full(512, np.nan, dtype=np.float32), -everywhere()):
        with pytest.raises(CompressionError, match="importance must be 512 finite squares"):
            quantize_rows(normal(), "Q4_K", np.arange(24), wrong)


def test_weights_beyond_16_bits_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CompressionError, match="F16 cannot hold a weight of"):
        quantize_rows(normal() * 1e6, "F16", np.arange(24))
    assert quantize_rows(normal() * 1e6, "BF16", np.arange(24)).shape == (24, 1024)


def test_width_must_fill_blocks() -> None:
    with pytest.raises(CompressionError, match=r"Q4_K needs rows of a multiple of 256 weights, got 172"):
        quantize_rows(normal(width=172), "Q4_K", np.arange(24))


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 9),
    blocks=st.integers(1, 4),
    scale=st.floats(1e-6, 1e3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_8_bits_are_within_half_a_step_of_each_block(rows: int, blocks: int, scale: float, dtype: torch.dtype) -> None:
    weight = (normal(rows, 32 * blocks) * scale).to(dtype)
    values = weight.float().numpy().astype(np.float64)
    restored = read_back(quantize_rows(weight, "Q8_0", np.arange(rows)), "Q8_0").astype(np.float64)
    step = np.abs(values.reshape(rows, blocks, 32)).max(-1, keepdims=True) / 127
    off = np.abs(restored - values).reshape(rows, blocks, 32)
    # the scale itself is a 16-bit number: 2**-11 of 127 steps, or the spacing of the smallest ones
    assert (off <= step * (0.5 + 127 * 2**-11) + 127 * 2**-25).all()
