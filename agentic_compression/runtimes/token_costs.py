"""What one token costs: bytes of weights that are read, operations of the matrices, bytes of keys and values.

Counted from the loaded model or the file's own tensors, so that packed and quantized layers count as they are stored.
Attention's own products and the reading of the cache grow with the context and are in none of these figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentic_compression.runtimes.interface import TokenCost

__all__ = ["GgufCache", "cache_bytes_of_config", "cost_of_gguf", "cost_of_model", "cost_of_safetensors"]

# Tables of which a token reads one row, by llama.cpp's names.
_TABLES = ("position_embd.weight", "token_types.weight", "per_layer_token_embd.weight")


def cost_of_model(model: Any) -> TokenCost:
    """Of a transformers model, in the type of its activations.

    Args:
        model: a causal language model whose layers are dense or one of ``checkpoints``' kinds. Of a mixture's experts,
            tensors ``(experts, rows, columns)``, a token meets as many as the configuration says.
    """
    from torch import nn

    experts, used = _experts(model.config.get_text_config())

    def share(tensor: Any) -> float:
        return used / experts if tensor.ndim == 3 and tensor.shape[0] == experts else 1.0

    read: dict[int, float] = {}
    matrices, of_head, head = 0.0, 0.0, model.get_output_embeddings()
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, nn.Embedding) or not own:
            continue  # one row of a table is read; a tied output layer owns the same tensor and counts it
        for tensor in own:
            read[tensor.data_ptr()] = max(tensor.nbytes * share(tensor), read.get(tensor.data_ptr(), 0.0))
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            found = float(module.in_features * module.out_features)
        else:
            weights = [tensor for tensor in module.parameters(recurse=False) if tensor.ndim > 1]
            found = sum(tensor.numel() * share(tensor) for tensor in weights)
        matrices += found
        of_head += found if module is head else 0.0
    dtype = str(model.dtype).removeprefix("torch.")
    return TokenCost(round(sum(read.values())), round(2 * matrices), round(2 * of_head), dtype)


def cost_of_gguf(path: str | Path) -> TokenCost:
    """Of a GGUF file, whose matrices llama.cpp multiplies in float32 or in integers: compared with float32."""
    import gguf

    reader = gguf.GGUFReader(str(path))
    names = {tensor.name for tensor in reader.tensors}
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    skipped = {*_TABLES} if head == "token_embd.weight" else {*_TABLES, "token_embd.weight"}
    experts, used = _gguf_number(reader, ".expert_count"), _gguf_number(reader, ".expert_used_count")
    share = used / experts if experts else 1.0
    read = matrices = 0.0
    for tensor in reader.tensors:
        if tensor.name in skipped:
            continue
        part = share if "_exps." in tensor.name else 1.0
        read += int(tensor.n_bytes) * part
        if len(tensor.shape) > 1:
            matrices += int(tensor.n_elements) * part
    of_head = next(int(tensor.n_elements) for tensor in reader.tensors if tensor.name == head)
    return TokenCost(round(read), round(2 * matrices), 2 * of_head, "float32")


def cost_of_safetensors(files: Sequence[Path], dtype: str) -> TokenCost:
    """Of the tensors that a folder stores, for an engine that keeps them so.

    Args:
        files: of one checkpoint.
        dtype: what the engine computes in.
    """
    shapes = dict(_stored_tensors(files))
    tied = "lm_head.weight" not in shapes
    embedding = next((name for name in shapes if name.endswith("embed_tokens.weight")), "")
    head = embedding if tied else "lm_head.weight"
    read = matrices = of_head = 0
    for name, (kind, shape, size, value) in shapes.items():
        if name == embedding and not tied:
            continue
        read += size
        found = 0
        if name.endswith(".weight_shape"):
            found = math.prod(value)
        elif name.endswith(".weight") and len(shape) == 2:
            # bitsandbytes keeps two 4-bit codes a byte, in one column.
            found = math.prod(shape) * (2 if kind == "U8" and shape[1] == 1 else 1)
        matrices += found
        of_head += found if name == head else 0
    return TokenCost(read, 2 * matrices, 2 * of_head, dtype)


def cache_bytes_of_config(config: Any, item_bytes: int, tokens: int) -> int | None:
    """Bytes of keys and values of so many tokens; None for an architecture whose cache is not keys and values.

    Args:
        config: a transformers text configuration. Layers with a sliding window keep one token less than it.
        item_bytes: of one number of the cache.
        tokens: of one sequence.
    """
    layers = int(config.num_hidden_layers) - int(getattr(config, "num_kv_shared_layers", None) or 0)
    window = getattr(config, "sliding_window", None)
    everywhere = "full_attention" if window is None else "sliding_attention"
    kinds = (getattr(config, "layer_types", None) or [everywhere] * layers)[:layers]
    unlike = any(getattr(config, name, None) for name in ("kv_lora_rank", "attention_chunk_size"))
    if unlike or not set(kinds) <= {"full_attention", "sliding_attention"}:
        return None
    heads = int(config.num_attention_heads)
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if getattr(config, "multi_query", False):
        shared = 1
    short = tokens if window is None else min(tokens, int(window) - 1)
    return 2 * shared * width * item_bytes * sum(tokens if kind == "full_attention" else short for kind in kinds)


class GgufCache:
    """Size of llama.cpp's cache by the file's metadata.

    Args:
        metadata: gives the text of a metadata key, or None.
        item_bytes: 2, as llama.cpp keeps float16, or 4.
    """

    def __init__(self, metadata: Any, item_bytes: int) -> None:
        self._metadata, self._item_bytes = metadata, item_bytes
        self._architecture = metadata("general.architecture") or ""

    @property
    def bytes_per_token(self) -> int | None:
        """Keys and values of all layers; None where llama.cpp keeps something else, or a window of them."""
        if any(map(self._value, ("attention.sliding_window", "attention.kv_lora_rank", "ssm.state_size"))):
            return None
        layers, heads = self._value("block_count"), self._value("attention.head_count")
        shared = self._value("attention.head_count_kv") or heads
        hidden = self._value("embedding_length")
        if not isinstance(layers, int) or not isinstance(hidden, int) or not shared or not heads:
            return None
        each = shared if isinstance(shared, list) else [shared] * layers
        most = max(heads) if isinstance(heads, list) else heads
        keys = self._value("attention.key_length") or hidden // most
        values = self._value("attention.value_length") or hidden // most
        if not isinstance(keys, int) or not isinstance(values, int):
            return None
        return sum(each) * (keys + values) * self._item_bytes

    def _value(self, key: str) -> int | list[int] | None:
        text = self._metadata(f"{self._architecture}.{key}")
        try:
            found = json.loads(text) if text else None
        except ValueError:
            return None
        return found if isinstance(found, int | list) else None


def _experts(config: Any) -> tuple[int, int]:
    """Experts a layer and how many of them a token meets; 0 and 0 without any."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    experts = next((int(value) for name in names if (value := getattr(config, name, None))), 0)
    return experts, int(getattr(config, "num_experts_per_tok", None) or experts)


def _gguf_number(reader: Any, ending: str) -> int:
    found = next((field for name, field in reader.fields.items() if name.endswith(ending)), None)
    return 0 if found is None else int(found.contents())


def _stored_tensors(files: Sequence[Path]) -> Iterator[tuple[str, tuple[str, list[int], int, list[int]]]]:
    """Name, and type, shape, bytes and (of ``weight_shape`` alone) values of every tensor."""
    from agentic_compression.checkpoints.tensor_files import TensorFile

    for path in files:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header.pop("__metadata__", None)
        with TensorFile(path) as source:
            for name, entry in header.items():
                value = [int(item) for item in source.read(name)] if name.endswith(".weight_shape") else []
                start, end = entry["data_offsets"]
                yield name, (entry["dtype"], entry["shape"], end - start, value)
