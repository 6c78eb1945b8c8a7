"""Which ggml type every tensor of a GGUF file gets: llama.cpp's own mixtures, by the file type's name.

A file type such as ``Q4_K_M`` is a mixture: most tensors have the type in its name, the ones that suffer most have more
bits. The rules are those of ``llama_tensor_get_type_impl`` and ``tensor_type_fallback`` in llama.cpp's
``src/llama-quant.cpp`` for dense models (no experts), so that a file made here has the types that ``llama-quantize``
would give it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from agentic_compression.checkpoints.ggml import block_width

__all__ = ["FILE_TYPES", "ModelShape", "Role", "fallback_type", "needs_importance", "tensor_type"]

Role = Literal[
    "token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
]  # fmt: skip

FILE_TYPES: dict[str, tuple[int, str]] = {
    "F32": (0, "F32"),
    "F16": (1, "F16"),
    "BF16": (32, "BF16"),
    "Q8_0": (7, "Q8_0"),
    "Q6_K": (18, "Q6_K"),
    "Q5_K_M": (17, "Q5_K"),
    "Q4_K_M": (15, "Q4_K"),
    "Q4_K_S": (14, "Q4_K"),
    "Q4_0": (2, "Q4_0"),
    "IQ4_NL": (25, "IQ4_NL"),
    "IQ4_XS": (30, "IQ4_XS"),
    "Q3_K_M": (12, "Q3_K"),
    "Q3_K_S": (11, "Q3_K"),
    "IQ3_S": (26, "IQ3_S"),
    "IQ3_XXS": (23, "IQ3_XXS"),
    "Q2_K": (10, "Q2_K"),
    "IQ2_S": (28, "IQ2_XS"),
    "IQ2_XXS": (19, "IQ2_XXS"),
}
"""Number in ``enum llama_ftype`` (llama.h, part of the file format) and the type of most tensors."""

_FALLBACK = {
    "IQ2_XXS": "IQ4_NL",
    "IQ2_XS": "IQ4_NL",
    "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL",
    "IQ3_S": "IQ4_NL",
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_NEED_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
_LAYERS_OF_70B = 80
_SHARED_VALUES = 4  # query heads a value head, from which values are worth more bits


@dataclass(frozen=True)
class ModelShape:
    """What the rules look at besides a tensor's role and layer.

    Attributes:
        layers: decoder blocks.
        queries_per_key: attention heads for each key-value head.
        tied: whether the output layer shares the token embeddings.
        importance: whether an importance matrix weighs the rounding.
    """

    layers: int
    queries_per_key: int
    tied: bool
    importance: bool


def needs_importance(file_type: str) -> bool:
    """Whether llama.cpp refuses to make this file type without an importance matrix."""
    return FILE_TYPES[file_type][1] in _NEED_IMPORTANCE


def fallback_type(type_name: str, width: int) -> str:
    """The type a tensor gets whose rows are ``width`` weights: the same where blocks fit, else llama.cpp's substitute.

    Where even blocks of 32 do not fit it is F16.
    """
    if width % block_width(type_name) == 0:
        return type_name
    substitute = _FALLBACK.get(type_name, "F16")
    return substitute if width % block_width(substitute) == 0 else "F16"


def tensor_type(file_type: str, role: Role, layer: int, width: int, shape: ModelShape) -> str:
    """The type of one weight before :func:`fallback_type`.

    Args:
        file_type: a key of :data:`FILE_TYPES`.
        role: what the weight does.
        layer: its decoder block; 0 outside the blocks.
        width: weights in a row.
        shape: of the model.
    """
    usual = FILE_TYPES[file_type][1]
    if usual in ("F32", "F16", "BF16"):
        return usual
    if role == "output" or (role == "token_embd" and shape.tied):
        return _output(file_type, usual, width)
    rule = _RULES.get(role)
    return (rule(file_type, layer, shape) if rule else None) or usual


def _output(file_type: str, usual: str, width: int) -> str:
    if width % block_width(usual):
        return "Q8_0"
    if file_type in ("IQ2_XXS", "IQ2_S", "IQ3_XXS"):
        return "Q5_K"
    return usual if usual == "Q8_0" else "Q6_K"


def _embedding(file_type: str, layer: int, shape: ModelShape) -> str | None:
    return {"IQ2_XXS": "Q2_K", "IQ2_S": "IQ3_S", "IQ3_XXS": "IQ3_S"}.get(file_type)


def _queries_and_keys(file_type: str, layer: int, shape: ModelShape) -> str | None:
    return {"IQ3_XXS": "IQ2_S"}.get(file_type)


def _values(file_type: str, layer: int, shape: ModelShape) -> str | None:
    shared = shape.queries_per_key >= _SHARED_VALUES
    q6_k = "Q6_K" if _more_bits(layer, shape.layers) else None
    chosen = {
        "Q5_K_M": q6_k,
        "Q4_K_M": q6_k,
        "Q4_K_S": "Q5_K" if layer < 4 else None,
        "IQ4_NL": "Q5_K" if shared else None,
        "IQ4_XS": "Q5_K" if shared else None,
        "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
        "IQ3_S": "Q4_K" if shared else None,
        "IQ3_XXS": "Q4_K" if shared else None,
        "Q2_K": "Q4_K" if shared else "Q3_K",
        "IQ2_S": "Q4_K" if shared else "IQ3_S",
        "IQ2_XXS": "Q4_K" if shared else "Q2_K",
    }.get(file_type)
    large = shape.layers == _LAYERS_OF_70B and shape.queries_per_key > 1 and not file_type.startswith("IQ2")
    if large and (chosen or FILE_TYPES[file_type][1]) in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return chosen


def _attention_output(file_type: str, layer: int, shape: ModelShape) -> str | None:
    return {"Q3_K_M": "Q4_K", "IQ3_XXS": "IQ3_S", "Q2_K": "Q3_K", "IQ2_S": "IQ3_S"}.get(file_type)


def _mlp_down(file_type: str, layer: int, shape: ModelShape) -> str | None:
    first = layer < shape.layers // 8
    q6_k = "Q6_K" if _more_bits(layer, shape.layers) else None
    q5_k = "Q5_K" if first and not shape.importance else None
    return {
        "Q5_K_M": q6_k,
        "Q4_K_M": q6_k,
        "Q4_K_S": "Q5_K" if first else None,
        "Q4_0": "Q4_1" if first and shape.importance else None,
        "IQ4_NL": q5_k,
        "IQ4_XS": q5_k,
        "Q3_K_M": "Q5_K" if layer < shape.layers // 16 else "Q4_K",
        "Q2_K": "Q3_K",
        "IQ2_S": "IQ3_S" if first else None,
        "IQ2_XXS": "Q2_K" if first else None,
    }.get(file_type)


def _more_bits(layer: int, layers: int) -> bool:
    """The layers that the ``_M`` mixtures favour: the first and last eighth and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


_RULES: Mapping[Role, Callable[[str, int, ModelShape], str | None]] = {
    "token_embd": _embedding,
    "attn_q": _queries_and_keys,
    "attn_k": _queries_and_keys,
    "attn_v": _values,
    "attn_output": _attention_output,
    "ffn_down": _mlp_down,
}
"""What a file type gives a role instead of its usual type; None keeps that."""
