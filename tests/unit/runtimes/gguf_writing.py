"""A Llama as a GGUF file, written with the ``gguf`` package alone: independent of this project's own exporter.

The file has no vocabulary (``no_vocab``): token ids are given to llama.cpp directly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_llama(model: Any, path: Path, *, half: bool = False) -> Path:
    """Write a ``LlamaForCausalLM`` in float32, or its matrices in float16."""
    import gguf

    shape = model.config
    heads = {"q_proj": shape.num_attention_heads, "k_proj": shape.num_key_value_heads}
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_parameters["rope_theta"])
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for name, parameter in model.named_parameters():
        values = parameter.detach().to(torch.float32).numpy()
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        if leaf in heads:
            values = _interleave(values, heads[leaf])
        matrix = values.ndim > 1
        writer.add_tensor(_gguf_name(name), values.astype(np.float16 if half and matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    name = name.removeprefix("model.")
    plain = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    if name == "lm_head.weight":
        return "output.weight"
    if name in plain:
        return plain[name]
    _, number, rest = name.split(".", 2)
    return f"blk.{number}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def _interleave(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rotary pairs side by side, as llama.cpp has them, instead of half a head apart, as transformers has them."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
