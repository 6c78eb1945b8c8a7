"""The formula of docs/memory_formula.md computed a second time, term by term, from other quantities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.records import Category, MethodDescription
from agentic_compression.spec.memory import bytes_by_dtype, memory_requirements
from agentic_compression.spec.shape import ModelShape

LLAMA = ModelShape("llama", 32, 4096, 11008, 32, 32, 128, 32000, 4096, False)
PARAMETERS = 6_738_415_616


def _method(category: Category, calibration: bool = False) -> MethodDescription:
    return MethodDescription(name="m", category=category, summary="", paper="", needs_calibration=calibration)


def _bf16_array_bytes(*shape: int) -> int:
    """Bytes of an array of 2-byte numbers, from numpy and not from a product typed here."""
    return int(np.broadcast_to(np.float16(0), shape).size) * np.dtype(np.float16).itemsize


def test_inference_is_weights_cache_activations_and_overhead() -> None:
    (inference,) = memory_requirements(PARAMETERS, 2 * PARAMETERS, LLAMA)
    tokens = 2048
    key = _bf16_array_bytes(32, 1, 32, tokens, 128)  # (layers, batch, heads, tokens, head_dim)
    hidden, wide = _bf16_array_bytes(1, tokens, 4096), _bf16_array_bytes(1, tokens, 11008)
    logits = np.zeros(32000, np.float32).nbytes
    expected = 1.1 * (13_476_831_232 + 2 * key + 4 * hidden + 2 * wide + logits) + 3e8
    assert inference.minimum_bytes == pytest.approx(expected, rel=1e-9)
    assert key * 2 == 1_073_741_824  # the well-known 0.5 MiB a token of Llama-2-7B


def test_gptq_adds_the_hessian_of_the_widest_layer() -> None:
    plain = memory_requirements(PARAMETERS, 2 * PARAMETERS, LLAMA, [_method("quantization")])[1]
    calibrated = memory_requirements(PARAMETERS, 2 * PARAMETERS, LLAMA, [_method("quantization", True)])[1]
    hessians = 2 * np.broadcast_to(np.float32(0), (11008, 11008)).size * 4
    windows = _bf16_array_bytes(2, 128, 2048, 4096)
    activations = 2 * 2048 * (4 * 4096 + 2 * 11008) + 4 * 32000
    extra = (calibrated.recommended_bytes - plain.recommended_bytes) / 1.1
    assert extra == pytest.approx(hessians + windows + activations, rel=1e-6)


def test_full_training_needs_16_bytes_a_parameter_and_an_adapter_1_percent_of_that() -> None:
    healing = memory_requirements(PARAMETERS, 2 * PARAMETERS, LLAMA, [_method("healing")])[1]
    assert healing.recommended_bytes > 16 * PARAMETERS
    assert healing.recommended_bytes < 1.1 * 16 * PARAMETERS + 4e9
    step = (healing.recommended_bytes - 3e8) / 1.1 - 16 * PARAMETERS
    adapter = (healing.minimum_bytes - 3e8) / 1.1 - 2 * PARAMETERS - step
    assert adapter == pytest.approx(0.16 * PARAMETERS, rel=1e-3)


@pytest.mark.parametrize("category", ["pruning", "low_rank", "healing", "quantization"])
@given(parameters=st.integers(1, 10**12))
def test_requirements_exceed_the_weights_and_order_when_only_the_size_is_known(
    category: Category, parameters: int
) -> None:
    requirements = memory_requirements(parameters, 2 * parameters, ModelShape(), [_method(category, True)])
    for requirement in requirements:
        assert 2 * parameters < requirement.minimum_bytes <= requirement.recommended_bytes


def test_bytes_by_dtype_of_linear_layers_and_embeddings() -> None:
    sizes = bytes_by_dtype(PARAMETERS, LLAMA)
    embeddings = 2 * 32000 * 4096
    linear = PARAMETERS - embeddings
    assert sizes["float32"] == 2 * sizes["bfloat16"] == 4 * PARAMETERS
    groups = linear // 128
    assert sizes["int4"] == pytest.approx(linear / 2 + groups * 2 + groups / 2 + 2 * embeddings, rel=1e-8)
    assert sizes["nf4"] == pytest.approx(linear / 2 + linear / 64 * 4 + 2 * embeddings, rel=1e-8)
    assert sizes["int4"] < sizes["nf4"] < sizes["int8"] < sizes["float16"]
