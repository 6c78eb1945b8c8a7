"""Bytes and operations of a token by hand, and caches against what the engines really hold."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

from agentic_compression.checkpoints.llama_layout import load_library
from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaModel
from agentic_compression.checkpoints.low_rank_linear import LowRankLinear
from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.checkpoints.quantized import QuantizedTensor
from agentic_compression.runtimes import TokenCost
from agentic_compression.runtimes.llama_cpp import LlamaCppRuntime
from agentic_compression.runtimes.token_costs import (
    GgufCache,
    cache_bytes_of_config,
    cost_of_gguf,
    cost_of_model,
    cost_of_safetensors,
)
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from tests.unit.methods.tiny_models import save_tiny, tiny_model

HIDDEN, MLP, VOCABULARY, LAYERS, KV = 64, 128, 258, 2, 32
BLOCK = 2 * HIDDEN * HIDDEN + 2 * KV * HIDDEN + 3 * HIDDEN * MLP
HEAD = VOCABULARY * HIDDEN
NORMS = (2 * LAYERS + 1) * HIDDEN
FREQUENCIES = 4 * 8  # rotary: half of a head's 16 numbers, float32; a second buffer keeps the original ones
FLOPS = 2 * (LAYERS * BLOCK + HEAD)


def cached_bytes(model: Any, tokens: int) -> int:
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_a_dense_model_by_hand(kind: str) -> None:
    """The untied input embedding is not read; the tied one is, as the output matrix, once."""
    model = tiny_model(kind, torch.bfloat16)
    cost = cost_of_model(model)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert cost == TokenCost(2 * (LAYERS * BLOCK + HEAD + NORMS) + buffers, FLOPS, 2 * HEAD, "bfloat16")
    assert buffers in (FREQUENCIES, 2 * FREQUENCIES)
    assert cost.prefill_flops(10) == 10 * 2 * LAYERS * BLOCK + 2 * HEAD
    assert cost.prefill_flops(1) == cost.flops


def test_packed_and_thin_layers_count_as_they_are_stored() -> None:
    model = tiny_model("llama", torch.bfloat16)
    before = cost_of_model(model)
    codes = torch.randint(-8, 8, (HIDDEN, HIDDEN)).to(torch.int8)
    ones = torch.ones(HIDDEN, 1, dtype=torch.bfloat16)
    packed = PackedLinear(QuantizedTensor(codes, ones, torch.zeros(HIDDEN, 1, dtype=torch.int8), 4))
    attention = model.model.layers[0].self_attn
    attention.q_proj = packed
    after = cost_of_model(model)
    stored = sum(buffer.nbytes for buffer in packed.buffers())
    assert stored < HIDDEN * HIDDEN  # half a byte a weight, and scales
    assert before.bytes_read - after.bytes_read == 2 * HIDDEN * HIDDEN - stored
    assert after.flops == before.flops
    like: dict[str, Any] = {"bias": False, "dtype": torch.bfloat16}
    attention.o_proj = LowRankLinear(nn.Linear(HIDDEN, 8, **like), nn.Linear(8, HIDDEN, **like))
    thin = cost_of_model(model)
    saved = HIDDEN * HIDDEN - 2 * 8 * HIDDEN
    assert (after.flops - thin.flops, after.bytes_read - thin.bytes_read) == (2 * saved, 2 * saved)


def test_of_a_mixture_a_token_meets_its_own_experts() -> None:
    shape = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = MixtralForCausalLM(MixtralConfig(**shape, **heads, num_local_experts=8, num_experts_per_tok=2))
    attention, router, experts, head = 2 * 32 * 32 + 2 * 16 * 32, 8 * 32, 2 * 3 * 32 * 48, 100 * 32
    assert cost_of_model(model).flops == 2 * (attention + router + experts + head)


@pytest.mark.parametrize(("half", "item"), [(False, 4), (True, 2)])
def test_a_gguf_file_by_hand(gguf_path: Path, half_path: Path, half: bool, item: int) -> None:
    cost = cost_of_gguf((half_path if half else gguf_path) / "model.gguf")
    assert cost == TokenCost(item * (LAYERS * BLOCK + HEAD) + 4 * NORMS, FLOPS, 2 * HEAD, "float32")


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_stored_tensors_cost_what_the_loaded_model_does(tmp_path: Path, kind: str) -> None:
    folder = save_tiny(tmp_path, kind)
    loaded, buffers = cost_of_model(tiny_model(kind)), sum(buffer.nbytes for buffer in tiny_model(kind).buffers())
    stored = cost_of_safetensors([folder / "model.safetensors"], "float32")
    assert stored == TokenCost(loaded.bytes_read - buffers, loaded.flops, loaded.head_flops, "float32")


@pytest.mark.parametrize("kind", ["llama", "biases"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_equals_the_tensors_of_transformers(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model(kind, dtype)
    for tokens in (1, 37):
        assert cache_bytes_of_config(model.config, dtype.itemsize, tokens) == cached_bytes(model, tokens)


def test_a_sliding_window_bounds_the_cache_and_head_width_is_the_configurations() -> None:
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
    config = MistralConfig(**shape, num_attention_heads=4, num_key_value_heads=1, head_dim=16, sliding_window=12)
    model = MistralForCausalLM(config)
    for tokens in (5, 11, 12, 30):
        assert cache_bytes_of_config(config, 4, tokens) == cached_bytes(model, tokens)


def test_a_latent_cache_is_not_guessed() -> None:
    config = tiny_model().config
    config.kv_lora_rank = 16
    assert cache_bytes_of_config(config, 4, 10) is None


def test_a_request_holds_all_but_its_last_token(dense: TransformersRuntime) -> None:
    assert dense.cache_bytes(40) == cached_bytes(dense.model, 39)
    assert dense.memory().cache_bytes_per_token == cached_bytes(dense.model, 1)
    assert dense.token_cost() == cost_of_model(dense.model)


@pytest.mark.parametrize("exact", [False, True])
def test_cache_of_llama_cpp_equals_what_it_writes_of_a_sequence(gguf_path: Path, exact: bool) -> None:
    """The saved state of a sequence grows by its keys and values, and by what is kept of a position: under 32 bytes."""
    library = load_library()
    size = library.llama_state_seq_get_size
    size.restype, size.argtypes = ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int32]
    with LlamaModel(gguf_path / "model.gguf") as model:
        expected = GgufCache(model.metadata, 4 if exact else 2).bytes_per_token
        context = model.context(ContextOptions(tokens=256, exact=exact))
        sizes = []
        for start, end in ((0, 100), (100, 200)):
            places = np.arange(start, end, dtype=np.int32)
            context.decode(places, places, np.zeros_like(places), np.zeros(100, dtype=bool))
            sizes.append(int(size(context.handle, 0)))
    assert expected == 2 * LAYERS * KV * (4 if exact else 2)
    assert 0 <= (sizes[1] - sizes[0]) / 100 - expected < 32


def test_llama_cpp_sets_aside_whole_blocks(half: LlamaCppRuntime) -> None:
    assert half.memory().cache_bytes_per_token == 2 * LAYERS * KV * 2
    assert [half.cache_bytes(tokens) for tokens in (1, 256, 257)] == [
        blocks * 256 * 2 * LAYERS * KV * 2 for blocks in (1, 1, 2)
    ]


def test_cache_of_other_architectures_is_not_guessed() -> None:
    plain = {
        "general.architecture": "x",
        "x.block_count": "3",
        "x.attention.head_count": "8",
        "x.attention.head_count_kv": "[2, 0, 4]",
        "x.embedding_length": "64",
        "x.attention.key_length": "16",
    }
    assert GgufCache(plain.get, 2).bytes_per_token == 6 * (16 + 8) * 2
    for key in ("x.attention.sliding_window", "x.attention.kv_lora_rank", "x.ssm.state_size"):
        assert GgufCache({**plain, key: "16"}.get, 2).bytes_per_token is None
    assert GgufCache({}.get, 2).bytes_per_token is None
