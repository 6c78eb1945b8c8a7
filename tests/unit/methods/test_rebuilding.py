"""Building a model anew around the tensors of another."""

from __future__ import annotations

import pytest
import torch

from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext
from agentic_compression.methods.rebuilding import (
    ConfigRefusedError,
    check_same_output,
    empty_mistral,
    empty_model,
    move_tensors,
    probe,
)
from tests.unit.methods.tiny_models import built_model, logits, random_windows, tiny_model


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma", "gpt_neox"])
def test_nothing_changed_gives_the_same_model(kind: str) -> None:
    model = built_model(kind)
    expected = logits(model)
    names = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    moved = move_tensors(model, empty_model(model, {}))
    assert torch.equal(logits(moved), expected)
    assert {name: parameter.data_ptr() for name, parameter in moved.named_parameters()} == names
    assert moved.config._attn_implementation == model.config._attn_implementation
    assert not moved.training


@pytest.mark.parametrize("others", [{}, {"tie_word_embeddings": True}])
def test_llama_and_mistral_compute_the_same(others: dict[str, bool]) -> None:
    model = built_model("llama", rms_norm_eps=1e-4, **others)
    expected = logits(model)
    mistral = move_tensors(model, empty_mistral(model, {}))
    assert type(mistral).__name__ == "MistralForCausalLM"
    assert torch.equal(logits(mistral), expected)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 500000.0,
        },
    ],
)
def test_rotary_settings_survive_the_change_to_mistral(scaling: dict[str, float]) -> None:
    model = built_model("llama", rope_parameters=scaling)
    expected = logits(model)
    empty = empty_mistral(model, {})
    assert empty.config.rope_parameters == model.config.rope_parameters
    torch.testing.assert_close(empty.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert torch.equal(logits(move_tensors(model, empty)), expected)


@pytest.mark.parametrize("kind", ["llama", "tied", "biases", "odd"])
def test_bfloat16_parameters_keep_their_type(kind: str) -> None:
    model = tiny_model(kind, torch.bfloat16)
    expected = logits(model)
    moved = move_tensors(model, empty_model(model, {}))
    assert moved.dtype == torch.bfloat16
    assert torch.equal(logits(moved), expected)


def test_impossible_config_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigRefusedError, match=r"hidden size \(48\) is not a multiple of .* heads \(5\)"):
        empty_model(built_model("llama"), {"num_attention_heads": 5})
    with pytest.raises(ConfigRefusedError, match="with biases"):
        empty_mistral(built_model("llama", mlp_bias=True), {})
    with pytest.raises(ConfigRefusedError, match="only a Llama"):
        empty_mistral(built_model("qwen2"), {})


def test_tensors_that_do_not_fit_are_refused() -> None:
    model = built_model("llama")
    with pytest.raises(CompressionError, match="cannot be built with fewer parts"):
        move_tensors(model, empty_model(model, {"intermediate_size": 64}))


def test_another_output_is_refused() -> None:
    context = CompressionContext(calibration=random_windows(1))
    model = built_model("llama")
    expected = probe(model, context)
    check_same_output(model, expected, context)
    model.model.layers[0].mlp.up_proj.weight.data[3] += 1
    with pytest.raises(CompressionError, match="LlamaForCausalLM with parts removed must compute what it does"):
        check_same_output(model, expected, context)
