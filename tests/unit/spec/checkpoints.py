"""Small checkpoint folders for tests, written with the safetensors library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
SHAPES = {
    "model.embed_tokens.weight": (24, 16),
    "lm_head.weight": (24, 16),
    "model.norm.weight": (16,),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.post_attention_layernorm.weight": (16,),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.self_attn.k_proj.weight": (8, 16),
    "model.layers.0.self_attn.v_proj.weight": (8, 16),
    "model.layers.0.self_attn.o_proj.weight": (16, 16),
    "model.layers.0.mlp.gate_proj.weight": (32, 16),
    "model.layers.0.mlp.up_proj.weight": (32, 16),
    "model.layers.0.mlp.down_proj.weight": (16, 32),
}
PARAMETERS = 24 * 16 * 2 + 16 * 3 + 16 * 16 * 2 + 8 * 16 * 2 + 32 * 16 * 3


def tensors() -> dict[str, np.ndarray]:
    """Float32 tensors of the shapes above."""
    return {name: np.zeros(shape, dtype=np.float32) for name, shape in SHAPES.items()}


def write_folder(folder: Path, content: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """A folder with config, one safetensors file and a tokenizer file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (folder / "tokenizer.json").write_text("{}")
    save_file(tensors() if content is None else content, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> Path:
    """The same checkpoint in two shards with an index."""
    write_folder(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(SHAPES)
    shards = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, members in shards.items():
        save_file({name: tensors()[name] for name in members}, folder / file)
    weights = {name: file for file, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return folder
