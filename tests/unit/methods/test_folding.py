"""Folds are found from what blocks do, and change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, OPTConfig, OPTForCausalLM

from agentic_compression.methods.folding import find_folds, folded_producer
from agentic_compression.methods.linear_layers import target_linears
from tests.unit.methods.tiny_models import logits, tiny_model

IDS = torch.arange(10, 42)[None]


def other(kind: str) -> Any:
    torch.manual_seed(0)
    model: Any
    if kind == "gemma":
        gemma = Gemma2Config(
            vocab_size=258,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=16,
            initializer_range=0.1,
        )
        model = Gemma2ForCausalLM(gemma)
    else:
        opt = OPTConfig(
            vocab_size=258,
            hidden_size=64,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            word_embed_proj_dim=64,
            init_std=0.1,
        )
        model = OPTForCausalLM(opt)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model.eval()


def folds_of(model: Any) -> list[Any]:
    return find_folds(model, IDS, [name for name, _ in target_linears(model)])


def short(fold: Any) -> tuple[str, str, tuple[str, ...]]:
    return (
        fold.producer.rpartition(".")[2],
        fold.form,
        tuple(name.rpartition(".")[2] for name in fold.consumers),
    )


def test_llama_block_has_four_folds_and_heads_that_share_values_share_scales() -> None:
    first, second = folds_of(tiny_model("odd"))  # 4 heads, 2 key-value heads of 16
    expected = [
        ("input_layernorm", "weight", ("q_proj", "k_proj", "v_proj")),
        ("v_proj", "rows", ("o_proj",)),
        ("post_attention_layernorm", "weight", ("gate_proj", "up_proj")),
        ("up_proj", "rows", ("down_proj",)),
    ]
    assert [short(fold) for fold in first] == expected
    assert [short(fold) for fold in second] == expected
    channel = [*range(16), *range(16), *range(16, 32), *range(16, 32)]
    assert first[1].source.tolist() == channel


def test_gemma_norms_count_from_one() -> None:
    found = [short(fold) for fold in folds_of(other("gemma"))[0]]
    assert ("input_layernorm", "one_plus_weight", ("q_proj", "k_proj", "v_proj")) in found
    assert ("pre_feedforward_layernorm", "one_plus_weight", ("gate_proj", "up_proj")) in found
    assert ("v_proj", "rows", ("o_proj",)) in found


def test_relu_lets_positive_scales_pass() -> None:
    found = [short(fold) for fold in folds_of(other("opt"))[0]]
    assert ("fc1", "rows", ("fc2",)) in found
    reading = {name: set(consumers) for name, _, consumers in found}
    assert reading["self_attn_layer_norm"] == {"q_proj", "k_proj", "v_proj"}


def test_a_norm_that_something_else_reads_is_left_alone() -> None:
    model = tiny_model()

    class Leak(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + x  # type: ignore[no-any-return]

    model.model.layers[0].mlp = Leak(model.model.layers[0].mlp)
    first, second = folds_of(model)
    assert "post_attention_layernorm" not in [short(fold)[0] for fold in first]
    assert "post_attention_layernorm" in [short(fold)[0] for fold in second]


def test_a_norm_that_some_tokens_read_elsewhere_is_left_alone() -> None:
    """A fold must hold for every token, not for most."""
    model = tiny_model()

    class LeakOnFew(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            few = (torch.arange(x.shape[1]) % 8 == 0)[:, None]
            return self.inner(x) + torch.where(few, x, torch.zeros_like(x))  # type: ignore[no-any-return]

    model.model.layers[0].mlp = LeakOnFew(model.model.layers[0].mlp)
    first, second = folds_of(model)
    assert "post_attention_layernorm" not in [short(fold)[0] for fold in first]
    assert "post_attention_layernorm" in [short(fold)[0] for fold in second]


@pytest.mark.parametrize("kind", ["llama", "biases", "tied", "gemma", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_scales_keeps_the_logits(kind: str, dtype: torch.dtype) -> None:
    """In bfloat16 the consumers, which a quantizer holds in float32, undo what rounding did to norms."""
    model = other(kind) if kind in ("gemma", "opt") else tiny_model(kind)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(torch.float32)
    before = logits(model)
    generator = torch.Generator().manual_seed(1)
    for fold in (fold for block in folds_of(model) for fold in block):
        producer = model.get_submodule(fold.producer)
        scales = torch.rand(int(fold.source.max()) + 1, generator=generator) * 3 + 0.2
        bias = getattr(producer, "bias", None)
        kept = torch.float32 if fold.form == "rows" or bias is not None else dtype
        weight, bias, scales = folded_producer(fold, producer.weight.detach().to(kept), bias, scales)
        producer.weight.data = weight.to(torch.float32)
        if bias is not None:
            producer.bias.data = bias
        for name in fold.consumers:
            model.get_submodule(name).weight.data *= scales[fold.source]
    assert torch.allclose(logits(model), before, atol=2e-4 * float(before.abs().max()))
