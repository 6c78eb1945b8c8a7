"""Finding attention and MLP in real architectures, and refusing those that are put together otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from agentic_compression.errors import CompressionError
from agentic_compression.methods.structure import attentions_of, keep_columns, keep_rows, mlps_of
from tests.unit.methods.tiny_models import built_model


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "starcoder2"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1), (3, 3)])
def test_attention_is_found(kind: str, heads: int, kv_heads: int) -> None:
    found = attentions_of(built_model(kind, heads, kv_heads))
    assert len(found) == 2
    assert (found[1].heads, found[1].kv_heads, found[1].head_dim) == (heads, kv_heads, 8)
    assert found[1].o == "model.layers.1.self_attn.o_proj"
    assert found[0].columns([2]).tolist() == list(range(16, 24))


@pytest.mark.parametrize(
    ("kind", "inputs", "output"),
    [
        ("llama", ("gate_proj", "up_proj"), "down_proj"),
        ("qwen3", ("gate_proj", "up_proj"), "down_proj"),
        ("starcoder2", ("c_fc",), "c_proj"),
        ("phi", ("fc1",), "fc2"),
        ("gpt_neox", ("dense_h_to_4h",), "dense_4h_to_h"),
    ],
)
def test_mlp_is_found(kind: str, inputs: tuple[str, ...], output: str) -> None:
    mlp = mlps_of(built_model(kind))[1]
    assert tuple(name.rpartition(".")[2] for name in mlp.inputs) == inputs
    assert mlp.output.rpartition(".")[2] == output
    assert mlp.width == 96
    assert "layers.1." in mlp.output


def test_mlp_right_in_the_block_is_found() -> None:
    mlp = mlps_of(built_model("opt", word_embed_proj_dim=48))[0]
    assert mlp.inputs == ("model.decoder.layers.0.fc1",)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gpt2", "GPT2LMHeadModel"), ("phi3", "Phi3ForCausalLM"), ("gpt_neox", "GPTNeoXForCausalLM")],
)
def test_fused_attention_is_refused_by_name(kind: str, name: str) -> None:
    with pytest.raises(CompressionError, match=rf"{name} is not supported: .*q_proj.*use drop_channels"):
        attentions_of(built_model(kind))


def test_norms_over_all_heads_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"Olmo2ForCausalLM is not supported: .*q_norm\.weight"):
        attentions_of(built_model("olmo2"))


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "mixtral"])
def test_other_mlps_are_refused(kind: str) -> None:
    with pytest.raises(CompressionError, match=r"is not supported: .*use drop_heads"):
        mlps_of(built_model(kind))


def test_blocks_that_differ_are_refused() -> None:
    model = built_model("llama")
    mlp: Any = model.model.layers[0].mlp
    mlp.gate_proj, mlp.up_proj, mlp.down_proj = nn.Linear(48, 80), nn.Linear(48, 80), nn.Linear(80, 48)
    with pytest.raises(CompressionError, match=r"as many MLP channels in every block, got \[80, 96\]"):
        mlps_of(model)


def test_rows_take_their_bias_along_and_columns_do_not() -> None:
    linear = nn.Linear(5, 4)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    keep_rows(linear, torch.tensor([3, 1]))
    keep_columns(linear, torch.tensor([0, 4]))
    assert torch.equal(linear.weight, weight[[3, 1]][:, [0, 4]])
    assert torch.equal(linear.bias, bias[[3, 1]])
