"""Narrower MLPs: the same function as masked channels, real smaller matrices, and a fit that is worth having."""

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
from agentic_compression.methods.drop_channels import (
    METHOD,
    DropChannelsConfig,
    apply,
    choose_channels,
    cut_channels,
    kept_width,
)
from agentic_compression.methods.interface import Workload
from agentic_compression.methods.rebuilding import empty_model, move_tensors
from agentic_compression.methods.structure import mlps_of
from tests.unit.methods.tiny_models import built_model, generated, logits, random_windows

KINDS = ["llama", "mistral", "qwen2", "qwen3", "gemma", "opt", "phi", "starcoder2", "gpt_neox"]


def model_of(kind: str) -> Any:
    return built_model(kind, **({"word_embed_proj_dim": 48} if kind == "opt" else {}))


def context() -> CompressionContext:
    return CompressionContext(calibration=random_windows())


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_cut_model_computes_what_masked_channels_do(kind: str) -> None:
    model = model_of(kind)
    channels = torch.tensor([index for index in range(96) if index % 3 and index != 50])
    mask = torch.zeros(96)
    mask[channels] = 1
    mlps = mlps_of(model)
    handles = [
        model.get_submodule(mlp.output).register_forward_pre_hook(lambda _, args: (args[0] * mask,)) for mlp in mlps
    ]
    expected = logits(model)
    for handle in handles:
        handle.remove()
    empty = empty_model(model, {"ffn_dim" if kind == "opt" else "intermediate_size": len(channels)})
    for mlp in mlps:
        cut_channels(model, mlp, channels)
    torch.testing.assert_close(logits(move_tensors(model, empty)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "opt", "starcoder2"])
def test_channels_that_add_nothing_go_first(kind: str) -> None:
    model = model_of(kind)
    width = kept_width(96, 0.3)
    generator = torch.Generator().manual_seed(9)
    for mlp in mlps_of(model):
        useless = torch.randperm(96, generator=generator)[: 96 - width]
        model.get_submodule(mlp.output).weight.data[:, useless] = 0
    expected = logits(model)
    smaller = apply(model, DropChannelsConfig(share=0.3), context()).model
    torch.testing.assert_close(logits(smaller), expected, rtol=1e-4, atol=1e-4)


def test_channels_that_others_can_replace_are_repaired() -> None:
    model = model_of("llama")
    for mlp in mlps_of(model):
        for name in mlp.inputs:
            weight = model.get_submodule(name).weight.data
            weight[48:] = weight[:48]  # every channel twice: half of them can go when the other half adds their part
    expected = logits(model)
    smaller = apply(model, DropChannelsConfig(share=0.5), context()).model
    assert smaller.config.intermediate_size == 48
    difference = torch.linalg.norm(logits(smaller) - expected) / torch.linalg.norm(expected)
    assert float(difference) < 0.05


@pytest.mark.parametrize(("kind", "projections", "biases"), [("llama", 3, 0), ("starcoder2", 2, 1), ("phi", 2, 1)])
def test_parameters_and_config_are_as_computed(kind: str, projections: int, biases: int) -> None:
    model = model_of(kind)
    before = count(model)
    made = apply(model, DropChannelsConfig(share=0.5), context())
    width = kept_width(96, 0.5)
    assert width == 48
    assert count(made.model) == before - 2 * (96 - width) * (projections * 48 + biases)
    assert made.model.config.intermediate_size == width
    assert made.notes == ("kept 48 of 96 MLP channels in each block: 50.0% removed, asked 50%",)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "opt"])
def test_result_loads_in_plain_transformers_and_generates_with_a_cache(kind: str, tmp_path: Path) -> None:
    made = apply(model_of(kind), DropChannelsConfig(share=0.3), context()).model
    reference = save_checkpoint(made, None, tmp_path / "made", CheckpointOrigin())
    assert "transformers" in reference.loads_with
    plain: Any = AutoModelForCausalLM.from_pretrained(reference.path).eval()
    assert torch.equal(logits(plain), logits(made))
    assert torch.equal(generated(plain, use_cache=True), generated(made, use_cache=False))


def test_choice_beats_chance_and_scores_of_single_channels() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 40, generator=generator).double() @ torch.randn(40, 40, generator=generator).double()
    gram = x.T @ x / 400 + 0.01 * torch.eye(40)
    weight = torch.randn(12, 40, generator=generator).double()

    def error(kept: torch.Tensor) -> float:
        fitted = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution
        return float((x @ weight.T - x[:, kept] @ fitted).square().sum())

    chosen = choose_channels(weight, gram, 20)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    by_weight = weight.norm(dim=0).argsort(descending=True)[:20]
    score = weight.norm(dim=0) * gram.diagonal().sqrt()
    assert error(chosen) < 0.9 * error(by_weight)
    assert error(chosen) < 0.9 * error(score.argsort(descending=True)[:20])
    by_chance = [error(torch.randperm(40, generator=generator)[:20]) for _ in range(100)]
    assert error(chosen) < 0.9 * min(by_chance)


@given(width=st.integers(2, 20000), share=st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]))
def test_kept_width_is_near_the_share_and_round(width: int, share: float) -> None:
    kept = kept_width(width, share)
    assert 1 <= kept < width
    assert abs(kept / width - (1 - share)) <= max(0.1, 1 / width) + 1e-9
    assert kept % (256 if width >= 2560 else 32 if width >= 320 else 1) == 0


def test_kept_width_of_common_models() -> None:
    assert kept_width(11008, 0.3) == 7680
    assert kept_width(512, 0.5) == 256
    assert kept_width(172, 0.1) == 160
    with pytest.raises(CompressionError, match="at least two channels, got 1"):
        kept_width(1, 0.1)


def test_infinite_activations_are_refused() -> None:
    model = model_of("llama")
    model.model.layers[1].mlp.up_proj.weight.data.fill_(float("inf"))
    with pytest.raises(CompressionError, match=r"NaN or infinite activations .*layers\.1\.mlp\.down_proj"):
        apply(model, DropChannelsConfig(), context())


def test_unknown_architecture_is_refused_before_calibration() -> None:
    with pytest.raises(CompressionError, match="GPT2LMHeadModel is not supported"):
        apply(built_model("gpt2"), DropChannelsConfig(), CompressionContext())


def test_width_under_another_name_is_refused() -> None:
    model = model_of("llama")
    model.config.intermediate_size = 95
    with pytest.raises(CompressionError, match="must give the MLP width 96 in its config"):
        apply(model, DropChannelsConfig(), context())


def test_needs_grow_with_the_work() -> None:
    assert METHOD.needs is not None
    small = Workload(10**6, 10**6, 4, 512, 1000, 256, 2 * 10**6, calibration_tokens=1000)
    large = Workload(10**9, 10**9, 16, 8192, 32000, 2048, 2 * 10**9, calibration_tokens=100_000)
    one, two = (METHOD.needs(work, DropChannelsConfig()) for work in (small, large))
    assert one.peak_bytes > small.weight_bytes
    assert two.peak_bytes > large.weight_bytes
    assert two.seconds > one.seconds > 0
