"""How llama.cpp names, orders and describes the parts of a Llama-like model.

Facts of the format: tensor names and metadata keys are those of gguf-py's ``constants.py``; for the ``llama``
architecture the rows of each query and key head are stored with the two halves of a rotary pair next to each other,
where Hugging Face keeps all first halves before all second ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentic_compression.checkpoints.gguf_types import ModelShape, Role
from agentic_compression.errors import CompressionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GgufTensor", "Layout", "gguf_layout", "row_order"]


@dataclass(frozen=True)
class _Architecture:
    """What llama.cpp's implementation of an architecture can hold.

    Attributes:
        name: llama.cpp's.
        interleaved: rotary pairs lie next to each other.
        biases: which linears may have one.
        head_norms: queries and keys are normalised head by head.
        frequency_factors: it reads ``rope_freqs.weight``.
        full_attention: all heads together must be as wide as the residual stream.
    """

    name: str
    interleaved: bool = False
    biases: frozenset[str] = frozenset()
    head_norms: bool = False
    frequency_factors: bool = False
    full_attention: bool = False


_ARCHITECTURES = {
    "LlamaForCausalLM": _Architecture(
        "llama",
        interleaved=True,
        biases=frozenset({"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}),
        frequency_factors=True,
    ),
    "MistralForCausalLM": _Architecture("llama", interleaved=True),
    "Qwen2ForCausalLM": _Architecture("qwen2", biases=frozenset({"attn_q", "attn_k", "attn_v"}), full_attention=True),
    "Qwen3ForCausalLM": _Architecture("qwen3", head_norms=True),
}
_LINEARS: Mapping[str, Role] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_YARN_EXTRAS = ("attention_factor", "mscale", "mscale_all_dim", "truncate")
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file and where it comes from.

    Attributes:
        name: in the file.
        parameter: the model's tensor.
        module: name of the module it belongs to.
        role: of a weight that may be quantized; None for norms, biases and rotary factors, which stay in float32.
        layer: decoder block; 0 outside.
        heads: when the rows are to be interleaved, in how many heads they fall.
    """

    name: str
    parameter: Any
    module: str
    role: Role | None = None
    layer: int = 0
    heads: int | None = None


@dataclass(frozen=True)
class Layout:
    """A model as llama.cpp sees it.

    Attributes:
        architecture: ``llama``, ``qwen2`` …
        tensors: in the order of the file.
        shape: what the mixtures of types depend on; without importance.
        vocabulary: rows of the token embedding.
        describe: writes the architecture's metadata with a ``GGUFWriter``.
        notes: in what llama.cpp will differ from the model.
    """

    architecture: str
    tensors: tuple[GgufTensor, ...]
    shape: ModelShape
    vocabulary: int
    describe: Callable[[Any], None]
    notes: tuple[str, ...] = field(default=())


def gguf_layout(model: Any) -> Layout:
    """Map a model's tensors and settings to those of llama.cpp.

    Args:
        model: a dense transformers causal language model.

    Raises:
        CompressionError: when llama.cpp, or this package, has no form for it; says which part.
    """
    known = _ARCHITECTURES.get(type(model).__name__)
    if known is None:
        raise CompressionError(
            f"gguf writes {', '.join(_ARCHITECTURES)}, got {type(model).__name__}; use rtn or gptq for this model"
        )
    config = model.config
    if config.hidden_act != "silu":
        raise CompressionError(
            f"llama.cpp's {known.name} has SiLU activations, got {config.hidden_act}; use rtn or gptq"
        )
    _check_rope(config.rope_parameters, known)
    sizes = _sizes(model)
    if known.full_attention and sizes.heads * sizes.head_width != sizes.hidden:
        raise CompressionError(
            f"llama.cpp's {known.name} needs heads of {sizes.hidden} in all, got {sizes.heads} of {sizes.head_width}; "
            "remove no heads, or use rtn or gptq"
        )
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    tensors = [*_outside(model, tied), *_blocks(model, known, sizes)]
    if config.rope_parameters["rope_type"] == "llama3":
        tensors.append(_frequency_factors(model))
    _check_complete(model, tensors, tied)
    context, notes = _context_length(config)
    shape = ModelShape(len(model.model.layers), sizes.heads // sizes.key_heads, tied, importance=False)
    vocabulary = int(model.model.embed_tokens.weight.shape[0])

    def describe(writer: Any) -> None:
        writer.add_block_count(shape.layers)
        writer.add_context_length(context)
        writer.add_vocab_size(vocabulary)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        sizes.describe(writer)
        _describe_rope(writer, config.rope_parameters)

    return Layout(known.name, tuple(tensors), shape, vocabulary, describe, notes)


def row_order(rows: int, heads: int | None) -> NDArray[np.int64]:
    """Which of the model's rows comes where in the file.

    Args:
        rows: of the weight or bias.
        heads: how many heads they are; None keeps them as they are.
    """
    import numpy as np

    order = np.arange(rows, dtype=np.int64)
    if heads is None:
        return order
    return np.ascontiguousarray(order.reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows))


@dataclass(frozen=True)
class _Sizes:
    heads: int
    key_heads: int
    head_width: int
    hidden: int
    mlp: int

    def describe(self, writer: Any) -> None:
        """Add the metadata."""
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.mlp)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.key_heads)
        writer.add_key_length(self.head_width)
        writer.add_value_length(self.head_width)
        writer.add_rope_dimension_count(self.head_width)


def _sizes(model: Any) -> _Sizes:
    """Widths read from the weights, which structured pruning may have changed; every block must have the same."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = set()
    for index, block in enumerate(model.model.layers):
        for name in _LINEARS:
            _linear(block, name, f"model.layers.{index}.{name}")
        attention, mlp = block.self_attn, block.mlp
        found.add(
            _Sizes(
                heads=attention.q_proj.out_features // width,
                key_heads=attention.k_proj.out_features // width,
                head_width=width,
                hidden=attention.q_proj.in_features,
                mlp=mlp.gate_proj.out_features,
            )
        )
    if len(found) != 1:
        raise CompressionError(
            f"llama.cpp needs blocks of equal widths, got {len(found)} different ones; prune every block alike"
        )
    return found.pop()


def _linear(block: Any, name: str, full_name: str) -> Any:
    from torch import nn

    module = block.get_submodule(name)
    if type(module) is not nn.Linear:
        raise CompressionError(f"gguf writes dense layers, got {type(module).__name__} at {full_name}; put gguf last")
    return module


def _outside(model: Any, tied: bool) -> list[GgufTensor]:
    """The tensors outside the blocks. A tied output layer is left out: llama.cpp then takes the embeddings."""
    inner = model.model
    tensors = [
        GgufTensor("token_embd.weight", inner.embed_tokens.weight, "model.embed_tokens", role="token_embd"),
        GgufTensor("output_norm.weight", inner.norm.weight, "model.norm"),
    ]
    if not tied:
        tensors.insert(1, GgufTensor("output.weight", _linear(model, "lm_head", "lm_head").weight, "lm_head", "output"))
    return tensors


def _blocks(model: Any, known: _Architecture, sizes: _Sizes) -> list[GgufTensor]:
    tensors = []
    rotated = {"attn_q": sizes.heads, "attn_k": sizes.key_heads} if known.interleaved else {}
    norms = _NORMS | (_HEAD_NORMS if known.head_norms else {})
    for index, block in enumerate(model.model.layers):
        for name, short in norms.items():
            source = f"model.layers.{index}.{name}"
            tensors.append(GgufTensor(f"blk.{index}.{short}.weight", block.get_submodule(name).weight, source))
        for name, role in _LINEARS.items():
            source, linear = f"model.layers.{index}.{name}", block.get_submodule(name)
            heads = rotated.get(role)
            tensors.append(GgufTensor(f"blk.{index}.{role}.weight", linear.weight, source, role, index, heads))
            if linear.bias is None:
                continue
            if role not in known.biases:
                raise CompressionError(f"llama.cpp's {known.name} has no bias in {source}; use rtn or gptq")
            tensors.append(GgufTensor(f"blk.{index}.{role}.bias", linear.bias, source, None, index, heads))
    return tensors


def _check_rope(rope: Mapping[str, Any], known: _Architecture) -> None:
    """Refuse rotary embeddings that llama.cpp computes in another way."""
    kind = rope.get("rope_type")
    kinds = ("default", "linear", "yarn", *(["llama3"] if known.frequency_factors else []))
    unusual = [name for name in _YARN_EXTRAS if rope.get(name) is not None] if kind == "yarn" else []
    if kind == "yarn" and rope.get("original_max_position_embeddings") is None:
        unusual.append("no original_max_position_embeddings")
    if kind not in kinds or rope.get("partial_rotary_factor", 1.0) != 1.0 or unusual:
        raise CompressionError(
            f"gguf writes {known.name} with whole rotary embeddings of type {', '.join(kinds)} in their usual form, "
            f"got {dict(rope)}; use rtn or gptq"
        )


def _frequency_factors(model: Any) -> GgufTensor:
    """What llama.cpp divides each rotary frequency by, for Llama 3's scaling: ``(head_dim / 2,)``."""
    import torch

    scaled = model.model.rotary_emb.inv_freq.to("cpu", torch.float64)
    steps = torch.arange(scaled.numel(), dtype=torch.float64) / scaled.numel()
    usual = float(model.config.rope_parameters["rope_theta"]) ** -steps
    return GgufTensor("rope_freqs.weight", usual / scaled, "model.rotary_emb")


def _check_complete(model: Any, tensors: list[GgufTensor], tied: bool) -> None:
    """Every parameter of the model must have a place in the file."""
    written = {id(tensor.parameter) for tensor in tensors}
    left = [name for name, parameter in model.named_parameters() if id(parameter) not in written]
    if left:
        raise CompressionError(
            f"gguf has no place for {left[0]} and {len(left) - 1} more parameters; use rtn or gptq for this model"
        )


def _context_length(config: Any) -> tuple[int, tuple[str, ...]]:
    """Positions the model can take in llama.cpp, whose code for these architectures has no sliding window."""
    positions = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False or window is None or window >= positions:
        return positions, ()
    note = f"llama.cpp applies no sliding window here: the context is limited to its {window} tokens, not {positions}"
    return int(window), (note,)


def _describe_rope(writer: Any, rope: Mapping[str, Any]) -> None:
    import gguf

    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
