from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agentic_compression.spec.architecture import FAMILIES, parameters_of_shape
from agentic_compression.spec.shape import ModelShape
from agentic_compression.spec.size_table import TableRow, lookup, nearest_ids, size_table

# Totals as the Hub's safetensors metadata and the authors' own tables state them, typed independently of the formula.
_EXACT = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-3-1b-it": 999_885_952,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-xl": 1_557_611_200,
    "facebook/opt-125m": 125_239_296,
    "microsoft/phi-2": 2_779_683_840,
    "EleutherAI/pythia-70m": 70_426_624,
    "EleutherAI/pythia-160m": 162_322_944,
    "EleutherAI/pythia-1.4b": 1_414_647_808,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "bigscience/bloom-560m": 559_214_592,
}


def test_size_table_has_at_least_100_models() -> None:
    assert len(size_table()) >= 100


@pytest.mark.parametrize(("model", "parameters"), _EXACT.items())
def test_size_table_has_the_published_total(model: str, parameters: int) -> None:
    row = lookup(model)
    assert row is not None
    assert row.parameters == parameters


@pytest.mark.parametrize("row", size_table().values(), ids=lambda row: row.model)
def test_row_agrees_with_the_formula_and_the_published_size(row: TableRow) -> None:
    assert parameters_of_shape(row.shape) == row.parameters
    assert row.parameters / 1e9 == pytest.approx(row.published_billions, rel=0.01)
    assert row.shape.heads is not None
    assert row.shape.kv_heads is not None
    assert row.shape.heads % row.shape.kv_heads == 0


def test_a_typing_error_in_a_row_would_not_go_unnoticed() -> None:
    row = lookup("meta-llama/Llama-2-7b-hf")
    assert row is not None
    assert parameters_of_shape(dataclasses.replace(row.shape, intermediate=11108)) != row.parameters


def test_lookup_ignores_case_and_suggests_near_ids() -> None:
    assert lookup("META-LLAMA/llama-2-7B-hf") is not None
    assert lookup("no/such") is None
    assert "Qwen/Qwen2.5-7B" in nearest_ids("Qwen/Qwen2.5-7b-")


_BY_FAMILY = {row.shape.family: row.shape for row in size_table().values()}
_SPELLING: dict[str, dict[str, str]] = {
    "gpt2": {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head",
             "intermediate_size": "n_inner", "max_position_embeddings": "n_positions"},
    "gptj": {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "num_attention_heads": "n_head",
             "intermediate_size": "n_inner", "max_position_embeddings": "n_positions"},
    "bloom": {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "mpt": {"num_hidden_layers": "n_layers", "hidden_size": "d_model", "num_attention_heads": "n_heads"},
    "opt": {"intermediate_size": "ffn_dim"},
    "gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    "qwen3_moe": {"intermediate_size": "moe_intermediate_size"},
}  # fmt: skip


def _config(shape: ModelShape) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    extra: dict[str, dict[str, Any]] = {
        "opt": {"word_embed_proj_dim": shape.hidden},
        "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
        "mixtral": {"num_local_experts": shape.experts},
        "qwen3_moe": {"num_experts": shape.experts},
    }
    renamed = {_SPELLING.get(shape.family, {}).get(name, name): value for name, value in facts.items()}
    if shape.family in {"gpt2", "gptj", "bloom", "mpt", "gpt_neo", "opt", "gpt_neox", "phi3"}:
        renamed = {name: value for name, value in renamed.items() if name not in {"num_key_value_heads", "head_dim"}}
        if shape.family == "phi3":
            renamed["num_key_value_heads"] = shape.kv_heads
    return {**renamed, **extra.get(shape.family, {})}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_formula_agrees_with_the_model_that_transformers_builds(family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = _BY_FAMILY[family]
    config = AutoConfig.for_model(family, **_config(shape))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert parameters_of_shape(dataclasses.replace(shape, layers=2)) == built
