"""Parameters of a model computed from its shape: the formula that the size table and Hub configs are checked with.

One layer of a decoder with hidden width ``h``, ``n`` heads and ``k`` key-value heads of width ``d``, MLP width ``i``:
attention ``h·n·d + 2·h·k·d + n·d·h``; MLP ``m·h·i`` with m = 3 (gated) or 2; norms and biases as the family has them.
A mixture of ``E`` experts has E MLPs and a router ``h·E``. Around the layers: embeddings ``V·h`` (twice when the output
head is not tied), learned positions ``T·h`` where the family has them, and the last norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agentic_compression.spec.shape import ModelShape

__all__ = ["FAMILIES", "parameters_of_shape"]


@dataclass(frozen=True)
class _Family:
    mlp_matrices: int = 3
    norms: int = 2
    norm_weight: bool = True
    norm_bias: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = ""  # "head": one vector of head_dim each; "full": over all heads
    positions: int | None = None  # learned positions: extra rows beyond the context length
    embedding_norm: bool = False
    head_bias: bool = False


_GPT2 = _Family(mlp_matrices=2, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True, positions=0)
_LLAMA = _Family()
FAMILIES: Mapping[str, _Family] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "gemma", "phi3", "granite", "smollm3"), _LLAMA),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qk_norm="head"),
    "qwen3_moe": _Family(qk_norm="head"),
    "gemma2": _Family(norms=4),
    "gemma3_text": _Family(norms=4, qk_norm="head"),
    "olmo": _Family(norm_weight=False),
    "olmo2": _Family(qk_norm="full"),
    "cohere": _Family(norms=1),
    "stablelm": _Family(norm_bias=True),
    "mpt": _Family(mlp_matrices=2),
    "gpt2": _GPT2,
    "gpt_neo": _Family(mlp_matrices=2, norm_bias=True, output_bias=True, mlp_bias=True, positions=0),
    "opt": _Family(
        mlp_matrices=2, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True, positions=2
    ),
    "gpt_neox": _Family(mlp_matrices=2, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True),
    "starcoder2": _Family(mlp_matrices=2, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True),
    "bloom": _Family(
        mlp_matrices=2, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True, embedding_norm=True
    ),
    "gptj": _Family(mlp_matrices=2, norms=1, norm_bias=True, mlp_bias=True, head_bias=True),
    "phi": _Family(
        mlp_matrices=2, norms=1, norm_bias=True, qkv_bias=True, output_bias=True, mlp_bias=True, head_bias=True
    ),
}  # fmt: skip


def parameters_of_shape(shape: ModelShape) -> int | None:
    """Parameters of a model of this shape; None when the family is not known here or a fact is missing."""
    family = FAMILIES.get(shape.family)
    h, layers, i, vocabulary = shape.hidden, shape.layers, shape.intermediate, shape.vocabulary
    heads, kv, d = shape.heads, shape.kv_heads, shape.head_dim
    if family is None or not (h and layers and i and vocabulary and heads and kv and d) or shape.tied is None:
        return None
    norm = h * (family.norm_weight + family.norm_bias)
    attention = h * heads * d + 2 * h * kv * d + heads * d * h
    attention += family.qkv_bias * (heads + 2 * kv) * d + family.output_bias * h
    attention += {"": 0, "head": 2 * d, "full": (heads + kv) * d}[family.qk_norm]
    mlp = family.mlp_matrices * h * i + family.mlp_bias * (i + h)
    if shape.experts:
        mlp = shape.experts * mlp + h * shape.experts
    total = layers * (attention + mlp + family.norms * norm) + norm
    total += vocabulary * h * (1 if shape.tied else 2) + family.head_bias * vocabulary + family.embedding_norm * norm
    if family.positions is not None:
        total += ((shape.context or 0) + family.positions) * h
    return total
