"""Count a checkpoint's logical parameters: what the model has, however its weights are stored.

Packed formats store several weights in one element and add scales; tied embeddings may be stored twice; old
checkpoints hold buffers. Understood: compressed-tensors (``weight_packed`` with ``weight_shape``, and the 4-bit float
formats without it), GPTQ and AWQ (``qweight``), bitsandbytes (``weight`` with ``quant_state``), and every format that
keeps one element a weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentic_compression.errors import ModelError
from agentic_compression.spec.safetensors_header import DTYPE_NAMES, TensorHeader

__all__ = ["ParameterCount", "count_parameters", "quantized_bits"]

_SIDE_TENSORS = (
    ".weight_scale", ".weight_zero_point", ".weight_g_idx", ".weight_shape", ".weight_global_scale",
    ".weight_scale_inv", ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale",
    ".output_zero_point", ".k_scale", ".v_scale", ".q_scale", ".qzeros", ".g_idx", ".scales", ".weight.absmax",
    ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map", ".SCB", ".weight_format", ".inv_freq",
    ".masked_bias",
)  # fmt: skip
_INPUTS = (".embed_tokens.weight", ".wte.weight", ".word_embeddings.weight", ".embed_in.weight")
_OUTPUTS = ("lm_head.weight", "embed_out.weight", "output.weight")


@dataclass(frozen=True)
class ParameterCount:
    """Logical parameters, the stored bytes of all tensors, and the dtype that most weights have."""

    parameters: int
    stored_bytes: int
    dtype: str
    detail: str


def count_parameters(
    tensors: Mapping[str, TensorHeader],
    config: Mapping[str, Any],
    *,
    tied: bool | None,
    shape_of: Callable[[str], tuple[int, ...] | None] = lambda name: None,
) -> ParameterCount:
    """Count logical parameters.

    Args:
        tensors: headers of all tensors of the checkpoint.
        config: parsed ``config.json``; its ``quantization_config`` says how many bits a packed weight has.
        tied: whether input and output embeddings are one matrix, which then counts once.
        shape_of: reads the values of a ``weight_shape`` tensor; None when its data cannot be read.

    Raises:
        ModelError: when nothing in the checkpoint is a parameter.
    """
    bits = quantized_bits(config)
    by_dtype: Counter[str] = Counter()
    total = packed = 0
    twice = _tied_copy(tensors) if tied else None
    for name, tensor in tensors.items():
        if name == twice or _is_side_tensor(name, tensor):
            continue
        logical, width = _logical(name, tensor, tensors, bits, shape_of)
        packed += logical if width else 0
        by_dtype[f"int{width}" if width else DTYPE_NAMES.get(tensor.dtype, tensor.dtype.lower())] += logical
        total += logical
    if total == 0:
        raise ModelError("the checkpoint holds no parameters; check that the right files were copied")
    notes = [f"{len(tensors)} tensors"]
    notes += [f"{packed:,} parameters are packed"] if packed else []
    notes += [f"{twice} is the tied embedding, counted once"] if twice else []
    return ParameterCount(
        parameters=total,
        stored_bytes=sum(tensor.size_bytes for tensor in tensors.values()),
        dtype=by_dtype.most_common(1)[0][0],
        detail="; ".join(notes),
    )


def quantized_bits(config: Mapping[str, Any]) -> int | None:
    """Bits of a quantized weight as ``quantization_config`` states them; None for an unquantized model."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return None
    groups = quantization.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    weights = first.get("weights") if isinstance(first, dict) else None
    values = (quantization.get("bits"), quantization.get("w_bit"), (weights or {}).get("num_bits"))
    for value in values:
        if type(value) is int and 1 <= value <= 16:
            return value
    if quantization.get("load_in_4bit") is True:
        return 4
    return 8 if quantization.get("load_in_8bit") is True else None


def _logical(
    name: str,
    tensor: TensorHeader,
    tensors: Mapping[str, TensorHeader],
    bits: int | None,
    shape_of: Callable[[str], tuple[int, ...] | None],
) -> tuple[int, int | None]:
    """Logical elements of a tensor and, for a packed one, the bits of each."""
    stem, _, leaf = name.rpartition(".")
    element_bits = {"I32": 32, "I8": 8, "U8": 8, "I64": 64}.get(tensor.dtype)
    if leaf == "weight_packed":
        values = shape_of(f"{stem}.weight_shape") if f"{stem}.weight_shape" in tensors else None
        if values is not None:
            logical = math.prod(values)
            if min(values) < 1 or logical > tensor.elements * (element_bits or 32):
                raise ModelError(f"{stem}.weight_shape says {values}, more than its packed weight holds; copy it again")
            return logical, bits or round(tensor.elements * (element_bits or 32) / max(1, logical))
        width = bits or 4
        return tensor.elements * (element_bits or 8) // width, width
    if leaf == "qweight" and element_bits:
        width = bits or 4
        return tensor.elements * element_bits // width, width
    if leaf == "weight" and tensor.dtype == "U8" and any(other.startswith(f"{name}.quant_state.") for other in tensors):
        return tensor.elements * 2, 4
    return tensor.elements, None


def _is_side_tensor(name: str, tensor: TensorHeader) -> bool:
    if name.endswith(_SIDE_TENSORS) or ".quant_state." in name or tensor.dtype == "BOOL":
        return True
    # the causal mask that old GPT-2 and NeoX checkpoints store, (1, 1, tokens, tokens)
    return name.endswith((".attn.bias", ".attention.bias")) and len(tensor.shape) == 4


def _tied_copy(tensors: Mapping[str, TensorHeader]) -> str | None:
    """The output embedding when it is stored beside an input embedding of the same shape."""
    shapes = {t.shape for name, t in tensors.items() if f".{name}".endswith(_INPUTS)}
    return next((name for name in _OUTPUTS if name in tensors and tensors[name].shape in shapes), None)
