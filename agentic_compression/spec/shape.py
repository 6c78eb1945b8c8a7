"""The shape of a causal language model, read from a ``config.json`` of any of the common spellings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ModelShape", "shape_of_config"]


@dataclass(frozen=True)
class ModelShape:
    """What the architecture formula and the memory formula need; None where unknown."""

    family: str = "unknown"
    layers: int | None = None
    hidden: int | None = None
    intermediate: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    tied: bool | None = None
    experts: int | None = None


_NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_dim": ("head_dim",),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
}
# What transformers assumes when config.json does not say; the general default is "not tied".
_TIED_BY_DEFAULT = frozenset({"gpt2", "gpt_neo", "opt", "bloom", "gemma", "gemma2", "gemma3_text", "cohere", "mpt",
                              "starcoder2", "gpt_bigcode", "falcon"})  # fmt: skip


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """Read the shape from a parsed ``config.json`` (a nested ``text_config`` wins); absent facts stay None."""
    nested = config.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, dict) else config
    family = text.get("model_type") or config.get("model_type")
    family = family if isinstance(family, str) and family else "unknown"
    found = {field: _first(text, names) for field, names in _NAMES.items()}
    hidden, heads = found["hidden"], found["heads"]
    if found["kv_heads"] is None and text.get("multi_query") is True:
        found["kv_heads"] = 1
    if found["kv_heads"] is None:
        found["kv_heads"] = heads
    if found["head_dim"] is None and hidden and heads and hidden % heads == 0:
        found["head_dim"] = hidden // heads
    if found["experts"] and (narrow := _first(text, ("moe_intermediate_size",))):
        found["intermediate"] = narrow
    if found["intermediate"] is None and hidden and family in _FOUR_TIMES:
        found["intermediate"] = 4 * hidden
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if not isinstance(tied, bool):
        tied = family in _TIED_BY_DEFAULT if family != "unknown" else None
    return ModelShape(family=family, tied=tied, **found)


_FOUR_TIMES = frozenset({"gpt2", "gpt_neo", "gptj", "bloom", "mpt", "falcon", "gpt_bigcode"})


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = config.get(name)
        if type(value) is int and value > 0:
            return value
    return None
