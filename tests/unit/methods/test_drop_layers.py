"""Fewer blocks: the right ones go, and what stays is a model like any other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from agentic_compression.checkpoints import CheckpointOrigin, save_checkpoint
from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext
from agentic_compression.methods.drop_layers import METHOD, DropLayersConfig, apply, influences
from agentic_compression.methods.interface import Workload
from tests.unit.methods.tiny_models import built_model, generated, logits, random_windows

KINDS = ["llama", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "opt", "olmo2", "mixtral"]
CRITERIA = ["loss", "influence"]


def context(count: int = 4) -> CompressionContext:
    return CompressionContext(calibration=random_windows(count))


def model_of(kind: str, blocks: int = 4) -> Any:
    return built_model(kind, blocks=blocks, **({"word_embed_proj_dim": 48} if kind == "opt" else {}))


@pytest.mark.parametrize("useless", [[0], [1, 3]])
def test_blocks_that_do_nothing_go_and_logits_stay(useless: list[int]) -> None:
    model = model_of("llama")
    for index in useless:
        block = model.model.layers[index]
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    expected = logits(model)
    config = DropLayersConfig(share=0.2 if len(useless) == 1 else 0.5, criterion="influence")
    made = apply(model, config, context()).model
    assert made.config.num_hidden_layers == 4 - len(useless)
    assert torch.equal(logits(made), expected)


def test_influence_is_the_formula_of_the_paper() -> None:
    model = model_of("llama")
    model.model.norm.weight.data.fill_(1)
    states: list[torch.Tensor] = []
    handles = [block.register_forward_pre_hook(lambda _, args: states.append(args[0])) for block in model.model.layers]
    handles.append(model.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0])))
    windows = random_windows(2)
    expected = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for window in windows:
            states.clear()
            model(input_ids=window)
            for index, (before, after) in enumerate(pairwise(states)):
                for x, y in zip(before[0].double(), after[0].double(), strict=True):
                    expected[index] += 1 - x @ y / (x.norm() * y.norm())
    for handle in handles:
        handle.remove()
    found = influences(model, list(model.model.layers), CompressionContext(calibration=windows))
    assert found == pytest.approx((expected / 80).tolist(), rel=1e-4)


def test_loss_removes_greedily_what_raises_it_least() -> None:
    windows = random_windows(3)

    def loss(kept: list[int]) -> float:
        model = model_of("llama", 5)
        model.model.layers = nn.ModuleList([model.model.layers[index] for index in kept])
        total, tokens = 0.0, 0
        with torch.no_grad():
            for ids in windows:
                scores = model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
                total -= float(scores.gather(1, ids[0, 1:, None]).sum())
                tokens += ids.shape[1] - 1
        return total / tokens

    first = min(range(5), key=lambda gone: loss([index for index in range(5) if index != gone]))
    rest = [index for index in range(5) if index != first]
    second = min(rest, key=lambda gone: loss([index for index in rest if index != gone]))
    kept = [index for index in rest if index != second]
    model = model_of("llama", 5)
    weights = [model.model.layers[index].mlp.up_proj.weight.clone() for index in kept]
    made = apply(model, DropLayersConfig(share=0.4), CompressionContext(calibration=windows))
    blocks = made.model.model.layers
    assert all(torch.equal(block.mlp.up_proj.weight, weight) for block, weight in zip(blocks, weights, strict=True))
    assert f"{first} (" in made.notes[0]
    assert f"{second} (" in made.notes[0]


@pytest.mark.parametrize("kind", KINDS)
def test_result_is_a_plain_model_with_a_right_cache(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    total = sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for name, parameter in model.named_parameters() if ".1." in name)
    made = apply(model, DropLayersConfig(share=0.5, criterion="influence"), context()).model
    assert sum(parameter.numel() for parameter in made.parameters()) == total - 2 * block
    assert made.config.num_hidden_layers == 2
    reference = save_checkpoint(made, None, tmp_path / "made", CheckpointOrigin())
    plain: Any = AutoModelForCausalLM.from_pretrained(reference.path).eval()
    assert torch.equal(logits(plain), logits(made))
    assert torch.equal(generated(made, use_cache=True), generated(made, use_cache=False))


def test_settings_listed_by_layer_follow_their_blocks() -> None:
    model = model_of("gemma2")
    kinds = list(model.config.layer_types)
    assert len(set(kinds)) == 2
    for index in (0, 2):  # both of one kind
        for linear in (model.model.layers[index].self_attn.o_proj, model.model.layers[index].mlp.down_proj):
            linear.weight.data.zero_()
    made = apply(model, DropLayersConfig(share=0.5, criterion="influence"), context()).model
    assert made.config.layer_types == [kinds[1], kinds[3]]


@pytest.mark.parametrize(("share", "blocks", "left"), [(0.1, 3, 2), (0.5, 2, 1), (0.3, 5, 3), (0.5, 3, 1)])
def test_at_least_one_block_goes_and_one_stays(share: float, blocks: int, left: int) -> None:
    made = apply(model_of("llama", blocks), DropLayersConfig(share=share, criterion="influence"), context())
    assert made.model.config.num_hidden_layers == left


def test_one_block_is_refused() -> None:
    with pytest.raises(CompressionError, match="at least two decoder blocks, LlamaForCausalLM has 1; use"):
        apply(model_of("llama", 1), DropLayersConfig(), context())


def test_blocks_that_depend_on_their_place_are_refused() -> None:
    model = built_model("gpt2", blocks=4, scale_attn_by_inverse_layer_idx=True)
    for linear in (model.transformer.h[0].attn.c_proj, model.transformer.h[0].mlp.c_proj):
        linear.weight.data.zero_()
        linear.bias.data.zero_()
    with pytest.raises(CompressionError, match="must compute what it does with them switched off"):
        apply(model, DropLayersConfig(share=0.2, criterion="influence"), context())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_infinite_activations_are_refused(criterion: str) -> None:
    model = model_of("llama")
    model.model.layers[2].mlp.down_proj.weight.data.fill_(float("inf"))
    with pytest.raises(CompressionError, match="NaN or infinite activations"):
        apply(model, DropLayersConfig(criterion=criterion), context())


def test_blocks_run_again_when_a_removal_fails() -> None:
    model = model_of("llama")
    model.model.layers[2].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(CompressionError):
        apply(model, DropLayersConfig(), context())
    assert not any("forward" in vars(block) for block in model.model.layers)


def test_needs_grow_with_the_work() -> None:
    assert METHOD.needs is not None
    work = Workload(10**8, 10**8, 12, 3072, 32000, 768, 2 * 10**8, calibration_tokens=10_000)
    influence = METHOD.needs(work, DropLayersConfig(criterion="influence"))
    loss = METHOD.needs(work, DropLayersConfig(share=0.5, criterion="loss"))
    assert loss.seconds > 3 * influence.seconds
    assert influence.peak_bytes > work.weight_bytes
