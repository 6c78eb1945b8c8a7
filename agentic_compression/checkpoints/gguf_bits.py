"""Bits a weight that a GGUF file type comes to, by arithmetic: its mixture of types over a dense model's tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from agentic_compression.checkpoints.gguf_types import FILE_TYPES, ModelShape, Role, fallback_type, tensor_type

__all__ = ["USUAL_SHAPE", "DenseShape", "MixtureBits", "mixture_bits"]


@dataclass(frozen=True)
class DenseShape:
    """Widths of a decoder with one gated MLP a layer.

    Attributes:
        layers: decoder blocks.
        hidden: width of the residual stream.
        queries: width of all query heads.
        keys: width of all key heads, and of all value heads.
        mlp: width of the MLP.
        vocabulary: tokens.
        tied: whether the output layer shares the token embeddings.
    """

    layers: int
    hidden: int
    queries: int
    keys: int
    mlp: int
    vocabulary: int
    tied: bool


USUAL_SHAPE = DenseShape(layers=32, hidden=4096, queries=4096, keys=1024, mlp=14336, vocabulary=128256, tied=False)
"""Llama 3.1 with 8 billion parameters, over which llama.cpp states the bits of its types."""


@dataclass(frozen=True)
class MixtureBits:
    """Bits a weight, scales included, of attention's matrices, the MLPs', embeddings and output, and of all."""

    attention: float
    mlp: float
    embeddings: float
    overall: float


@lru_cache(maxsize=256)
def mixture_bits(file_type: str, shape: DenseShape = USUAL_SHAPE) -> MixtureBits:
    """What a file type comes to on a model of this shape.

    Args:
        file_type: a key of ``FILE_TYPES``.
        shape: of the model; where its rows do not fit a type's blocks, llama.cpp's substitute counts.

    Raises:
        KeyError: for a file type that is not known.
    """
    rules = ModelShape(shape.layers, max(1, shape.queries // max(1, shape.keys)), shape.tied, importance=True)
    blocks: dict[str, list[tuple[Role, int, int]]] = {
        "attention": [
            ("attn_q", shape.hidden, shape.queries),
            ("attn_k", shape.hidden, shape.keys),
            ("attn_v", shape.hidden, shape.keys),
            ("attn_output", shape.queries, shape.hidden),
        ],
        "mlp": [
            ("ffn_gate", shape.hidden, shape.mlp),
            ("ffn_up", shape.hidden, shape.mlp),
            ("ffn_down", shape.mlp, shape.hidden),
        ],
    }
    outside: list[Role] = ["token_embd"] if shape.tied else ["token_embd", "output"]
    weights, bits = dict.fromkeys((*blocks, "embeddings"), 0), dict.fromkeys((*blocks, "embeddings"), 0.0)
    for part, tensors in blocks.items():
        for role, width, rows in tensors:
            weights[part] += shape.layers * width * rows
            for layer in range(shape.layers):
                bits[part] += width * rows * _bits(file_type, role, layer, width, rules)
    for role in outside:
        weights["embeddings"] += shape.hidden * shape.vocabulary
        bits["embeddings"] += shape.hidden * shape.vocabulary * _bits(file_type, role, 0, shape.hidden, rules)
    means = {part: bits[part] / max(1, weights[part]) for part in weights}
    return MixtureBits(**means, overall=sum(bits.values()) / max(1, sum(weights.values())))


def _bits(file_type: str, role: Role, layer: int, width: int, rules: ModelShape) -> float:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    assert file_type in FILE_TYPES, file_type
    kind = fallback_type(tensor_type(file_type, role, layer, width, rules), width)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return float(8 * size / block)
