"""Fewer heads: the same function as masked heads, for every way of sharing keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from agentic_compression.checkpoints import CheckpointOrigin, save_checkpoint
from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext
from agentic_compression.methods.column_removal import damped
from agentic_compression.methods.drop_heads import (
    METHOD,
    DropHeadsConfig,
    Form,
    apply,
    choose_heads,
    cut_heads,
    forms,
)
from agentic_compression.methods.interface import Workload
from agentic_compression.methods.rebuilding import empty_model, move_tensors
from agentic_compression.methods.structure import Attention, attentions_of
from tests.unit.methods.tiny_models import built_model, generated, logits, random_windows

# query heads, key-value heads, share, and what is kept: (query heads, key-value heads)
SHAPES = [
    (4, 2, 0.3, (2, 2)),  # grouped: half of the query heads of each group is nearest
    (6, 3, 0.3, (4, 2)),  # a whole group of three
    (6, 2, 0.5, (3, 1)),  # half of the groups
    (4, 4, 0.3, (3, 3)),  # one head each, an odd number stays
    (3, 3, 0.3, (2, 2)),
    (5, 1, 0.3, (3, 1)),  # one key-value head for all
    (4, 1, 0.7, (1, 1)),
]


def context() -> CompressionContext:
    return CompressionContext(calibration=random_windows())


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma", "starcoder2"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "kept"),
    [(6, 3, [0, 1, 4, 5]), (6, 3, [1, 2, 4]), (4, 4, [0, 2, 3]), (5, 1, [1, 4]), (6, 2, [0, 2])],
)
def test_cut_model_computes_what_masked_heads_do(kind: str, heads: int, kv_heads: int, kept: list[int]) -> None:
    model = built_model(kind, heads, kv_heads)
    mask = torch.zeros(heads, 8)
    mask[kept] = 1
    attentions = attentions_of(model)
    handles = [
        model.get_submodule(one.o).register_forward_pre_hook(lambda _, args: (args[0] * mask.reshape(-1),))
        for one in attentions
    ]
    expected = logits(model)
    for handle in handles:
        handle.remove()
    groups = len({head // (heads // kv_heads) for head in kept})
    empty = empty_model(model, {"num_attention_heads": len(kept), "num_key_value_heads": groups, "head_dim": 8})
    for attention in attentions:
        cut_heads(model, attention, kept)
    torch.testing.assert_close(logits(move_tensors(model, empty)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("heads", "kv_heads", "share", "kept"), SHAPES)
def test_sizes_are_as_computed_and_the_cache_agrees(
    kind: str, heads: int, kv_heads: int, share: float, kept: tuple[int, int]
) -> None:
    model = built_model(kind, heads, kv_heads, hidden_size=8 * heads)
    before = count(model)
    made = apply(model, DropHeadsConfig(share=share), context()).model
    config = made.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (*kept, 8)
    biases = 1 if kind == "qwen2" else 0
    query, key = heads - kept[0], kv_heads - kept[1]
    assert count(made) == before - 2 * 8 * (query * (16 * heads + biases) + 2 * key * (8 * heads + biases))
    assert torch.equal(generated(made, use_cache=True), generated(made, use_cache=False))


@pytest.mark.parametrize(("heads", "kv_heads", "gone"), [(6, 3, [2, 3]), (4, 4, [1]), (6, 2, [1, 4])])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_heads_that_add_nothing_go_first(kind: str, heads: int, kv_heads: int, gone: list[int]) -> None:
    model = built_model(kind, heads, kv_heads)
    for attention in attentions_of(model):
        model.get_submodule(attention.o).weight.data[:, attention.columns(gone)] = 0
    expected = logits(model)
    smaller = apply(model, DropHeadsConfig(share=0.3), context()).model
    assert smaller.config.num_attention_heads == heads - len(gone)
    torch.testing.assert_close(logits(smaller), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "heads", "stored"), [("llama", 6, "llama"), ("llama", 5, "mistral"), ("qwen3", 5, "qwen3")]
)
def test_result_loads_in_plain_transformers(kind: str, heads: int, stored: str, tmp_path: Path) -> None:
    made = apply(built_model(kind, heads, 1, hidden_size=8 * heads), DropHeadsConfig(share=0.3), context())
    assert made.model.config.model_type == stored
    assert any("stored as Mistral" in note for note in made.notes) == (stored != kind)
    reference = save_checkpoint(made.model, None, tmp_path / "made", CheckpointOrigin())
    assert "transformers" in reference.loads_with
    plain: Any = AutoModelForCausalLM.from_pretrained(reference.path).eval()
    assert plain.config.model_type == stored
    assert torch.equal(logits(plain), logits(made.model))
    assert torch.equal(generated(plain, use_cache=True), generated(made.model, use_cache=False))


def test_tied_embeddings_stay_tied() -> None:
    model = built_model("llama", 5, 1, hidden_size=40, tie_word_embeddings=True)
    made = apply(model, DropHeadsConfig(share=0.3), context()).model
    assert made.config.model_type == "mistral"
    assert made.lm_head.weight is made.model.embed_tokens.weight


def test_llama_with_biases_keeps_to_the_numbers_of_heads_it_may_have() -> None:
    model = built_model("llama", 6, 1, attention_bias=True)
    made = apply(model, DropHeadsConfig(share=0.3), context()).model
    assert made.config.model_type == "llama"
    assert 48 % made.config.num_attention_heads == 0
    refused = built_model("llama", 8, 8, attention_bias=True, hidden_size=64)
    with pytest.raises(
        CompressionError, match=r"within 0\.2 of share 0\.1 .*possible shares: 0\.5, 0\.75, 0\.88 .*use one"
    ):
        apply(refused, DropHeadsConfig(share=0.1), context())


def test_one_head_is_refused() -> None:
    with pytest.raises(CompressionError, match="1 query and 1 key-value heads has no removal"):
        apply(built_model("llama", 1, 1), DropHeadsConfig(), context())


def test_architecture_without_a_head_dim_of_its_own_is_refused() -> None:
    model = built_model("opt", word_embed_proj_dim=48, dropout=0.0, num_attention_heads=6)
    with pytest.raises(CompressionError, match=r"OPTForCausalLM with 6 query .*possible shares: none"):
        apply(model, DropHeadsConfig(), context())


def test_missing_calibration_is_named() -> None:
    with pytest.raises(CompressionError, match="drop_heads needs calibration text"):
        apply(built_model("llama"), DropHeadsConfig(), CompressionContext())


@given(
    kv_heads=st.integers(1, 12),
    group=st.integers(1, 8),
    share=st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
)
def test_forms_are_uniform_smaller_and_nearest_first(kv_heads: int, group: int, share: float) -> None:
    found = forms(kv_heads * group, kv_heads, share)
    assert len(found) == kv_heads * group - 1
    for form in found:
        assert 1 <= form.kv_heads <= kv_heads
        assert 1 <= form.group <= group
        kept = form.kv_heads * form.group + form.kv_heads
        assert form.removed == pytest.approx(1 - kept / (kv_heads * group + kv_heads))
        assert form.removed > 0
    distances = [round(abs(form.removed - share), 9) for form in found]
    assert distances == sorted(distances)


def test_chosen_heads_are_those_of_least_error() -> None:
    generator = torch.Generator().manual_seed(4)
    attention = Attention("q", "k", "v", "o", heads=4, kv_heads=2, head_dim=3)
    x = torch.randn(300, 12, generator=generator).double() @ torch.randn(12, 12, generator=generator).double()
    weight = torch.randn(5, 12, generator=generator).double()
    gram = damped(x.T @ x / 300, "o")

    def error(heads: list[int]) -> float:
        columns = attention.columns(heads)
        fitted = torch.linalg.lstsq(x[:, columns], x @ weight.T).solution
        return float((x @ weight.T - x[:, columns] @ fitted).square().sum())

    assert choose_heads(weight, gram, attention, Form(1, 2, 0.5)) == min(([0, 1], [2, 3]), key=error)
    one_each = choose_heads(weight, gram, attention, Form(2, 1, 0.33))
    assert [head // 2 for head in one_each] == [0, 1]


def test_needs_grow_with_the_work() -> None:
    assert METHOD.needs is not None
    small = Workload(10**6, 10**6, 4, 512, 1000, 256, 2 * 10**6, calibration_tokens=1000)
    large = Workload(10**9, 10**9, 16, 8192, 32000, 2048, 2 * 10**9, calibration_tokens=100_000)
    one, two = (METHOD.needs(work, DropHeadsConfig()) for work in (small, large))
    assert one.peak_bytes > small.weight_bytes
    assert two.peak_bytes > large.weight_bytes
    assert two.seconds > one.seconds > 0
