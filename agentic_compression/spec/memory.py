"""Device memory that running or compressing a model needs. The formula is explained in ``docs/memory_formula.md``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agentic_compression.records import MemoryRequirement, MethodDescription
from agentic_compression.spec.shape import ModelShape

__all__ = ["bytes_by_dtype", "memory_requirements"]

_RUNTIME = 300_000_000  # libraries, allocator pools, kernels: bytes beside what grows with the model
_OVERHEAD = 1.10  # fragmentation and temporary copies
_ACTIVATION_BYTES = 2  # bfloat16, also of the KV cache
_CALIBRATION_TOKENS = 128 * 2048  # the usual calibration set: 128 windows of 2,048 tokens
_GROUP = 128  # weights that share one scale
_NF4_BLOCK = 64
_ADAPTER_SHARE = 0.01  # trainable share of a low-rank adapter
_TRAINING_BYTES = 16  # float32 weight, gradient and two Adam moments


@dataclass(frozen=True)
class _Sizes:
    """A complete shape, the unknown parts filled by Llama's proportions."""

    layers: int
    hidden: int
    intermediate: int
    kv_width: int
    vocabulary: int
    context: int
    experts: int


def bytes_by_dtype(parameters: int, shape: ModelShape) -> dict[str, int]:
    """Whole-model bytes at each dtype.

    int8, int4 and nf4 apply to the linear layers; embeddings and output head stay at 16 bit. int8 has one float16 scale
    an output row, int4 a float16 scale and a 4-bit zero point a group of 128 (4.156 bits a weight), nf4
    a float32 scale a block of 64 (4.5 bits a weight).
    """
    embeddings = min(parameters, (shape.vocabulary or 0) * (shape.hidden or 0) * (1 if shape.tied else 2))
    linear = parameters - embeddings
    row = shape.hidden or 4096

    def quantized(bits: float) -> int:
        return math.ceil(linear * bits / 8) + 2 * embeddings

    return {
        "float32": 4 * parameters,
        "bfloat16": 2 * parameters,
        "float16": 2 * parameters,
        "int8": quantized(8 + 16 / row),
        "int4": quantized(4 + (16 + 4) / _GROUP),
        "nf4": quantized(4 + 32 / _NF4_BLOCK),
    }


def memory_requirements(
    parameters: int, weight_bytes: int, shape: ModelShape, methods: Sequence[MethodDescription] = ()
) -> tuple[MemoryRequirement, ...]:
    """Memory for inference and for each method.

    Args:
        parameters: logical parameters.
        weight_bytes: bytes of the weights as loaded.
        shape: what is known of the architecture.
        methods: methods to add a requirement for.
    """
    sizes = _complete(parameters, shape)
    small = min(2048, sizes.context)
    large = min(8192, sizes.context)
    inference = MemoryRequirement(
        use="inference",
        minimum_bytes=_total(weight_bytes + _kv_cache(sizes, small, 1) + _activations(sizes, small, 1)),
        recommended_bytes=_total(weight_bytes + _kv_cache(sizes, large, 4) + _activations(sizes, large, 4)),
    )
    return (inference, *(_method(parameters, weight_bytes, sizes, method) for method in methods))


def _method(parameters: int, weight_bytes: int, sizes: _Sizes, method: MethodDescription) -> MemoryRequirement:
    tokens = min(2048, sizes.context)
    matrix = sizes.hidden * max(sizes.intermediate, sizes.hidden)
    layer = sizes.hidden * (2 * sizes.hidden + 2 * sizes.kv_width + 3 * sizes.intermediate * max(1, sizes.experts))
    if method.category == "healing":
        stored = _ACTIVATION_BYTES * sizes.layers * tokens * sizes.hidden  # one checkpoint a layer
        logits = 2 * 4 * tokens * sizes.vocabulary  # float32 logits and their gradient
        step = stored + logits + _activations(sizes, tokens, 1)
        adapter = int(_ADAPTER_SHARE * parameters) * _TRAINING_BYTES
        return MemoryRequirement(
            use=method.name,
            minimum_bytes=_total(weight_bytes + adapter + step),
            recommended_bytes=_total(_TRAINING_BYTES * parameters + step),
        )
    # float32 copies: the matrix and its result; a factorization also holds U, S and V
    work = 4 * matrix * (5 if method.category == "low_rank" else 2)
    whole_layer = 4 * layer * 2
    calibration = hessian = 0
    if method.needs_calibration:
        calibration = 2 * _ACTIVATION_BYTES * _CALIBRATION_TOKENS * sizes.hidden  # inputs and outputs of one layer
        hessian = 2 * 4 * max(sizes.intermediate, sizes.hidden) ** 2  # H and its inverse
        hessian += _activations(sizes, tokens, 1)
    minimum = weight_bytes + work + hessian + (calibration // 8)
    recommended = weight_bytes + max(work, whole_layer) + hessian + calibration
    return MemoryRequirement(use=method.name, minimum_bytes=_total(minimum), recommended_bytes=_total(recommended))


def _kv_cache(sizes: _Sizes, tokens: int, batch: int) -> int:
    """Keys and values of every layer, (batch, kv_heads, tokens, head_dim) each, bfloat16."""
    return 2 * _ACTIVATION_BYTES * sizes.layers * sizes.kv_width * tokens * batch


def _activations(sizes: _Sizes, tokens: int, batch: int) -> int:
    """The widest moment of a layer's forward pass (4 hidden, 2 MLP vectors a token) and one float32 row of logits."""
    widest = _ACTIVATION_BYTES * tokens * (4 * sizes.hidden + 2 * sizes.intermediate)
    return batch * (widest + 4 * sizes.vocabulary)


def _total(grows: int) -> int:
    return math.ceil(_OVERHEAD * grows) + _RUNTIME


def _complete(parameters: int, shape: ModelShape) -> _Sizes:
    """Fill gaps: N ≈ 12·L·h² with h = 128·L, i = 8h/3, V = 32,000, as the Llama models have."""
    layers = shape.layers or max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    hidden = shape.hidden or max(64, 64 * round(math.sqrt(parameters / (12 * layers)) / 64))
    heads = shape.kv_heads or shape.heads
    return _Sizes(
        layers=layers,
        hidden=hidden,
        intermediate=shape.intermediate or round(8 * hidden / 3),
        kv_width=heads * shape.head_dim if heads and shape.head_dim else hidden,
        vocabulary=shape.vocabulary or 32_000,
        context=shape.context or 2048,
        experts=shape.experts or 0,
    )
