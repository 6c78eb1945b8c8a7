"""Structured pruning of a real trained model, against cutting by the size of the weights without any repair."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from agentic_compression.checkpoints import load_checkpoint
from agentic_compression.methods import CompressionContext, get_method
from agentic_compression.methods.drop_channels import cut_channels
from agentic_compression.methods.rebuilding import empty_model, move_tensors
from agentic_compression.methods.structure import mlps_of
from tests.unit.methods.tiny_models import STORIES, STORIES_TEXT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not on this machine"),
]


@pytest.fixture(scope="module")
def windows() -> list[torch.Tensor]:
    tokenizer = load_checkpoint(STORIES).tokenizer
    texts = [json.loads(line)["text"] for line in STORIES_TEXT.read_text().splitlines()[:108]]
    return [tokenizer(text, return_tensors="pt")["input_ids"][:, :256] for text in texts]


def perplexity(model: Any, windows: list[torch.Tensor]) -> float:
    loss, count = 0.0, 0
    with torch.no_grad():
        for ids in windows[64:]:
            scores = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            loss -= float(scores.gather(1, ids[0, 1:, None]).sum())
            count += ids.shape[1] - 1
    return math.exp(loss / count)


def pruned(name: str, windows: list[torch.Tensor], **parameters: Any) -> Any:
    method = get_method(name)
    context = CompressionContext(calibration=windows[:64])
    return method.apply(load_checkpoint(STORIES).model, method.config(**parameters), context).model


def test_channels_chosen_and_repaired_beat_those_of_largest_weights(windows: list[torch.Tensor]) -> None:
    made = pruned("drop_channels", windows, share=0.3)
    width = made.config.intermediate_size
    plain = load_checkpoint(STORIES).model
    for mlp in mlps_of(plain):
        norms = sum(plain.get_submodule(name).weight.norm(dim=1) for name in mlp.inputs)
        norms = norms + plain.get_submodule(mlp.output).weight.norm(dim=0)
        cut_channels(plain, mlp, norms.argsort(descending=True)[:width].sort().values)
    plain = move_tensors(plain, empty_model(plain, {"intermediate_size": width}))
    dense = perplexity(load_checkpoint(STORIES).model, windows)
    ours, theirs = perplexity(made, windows), perplexity(plain, windows)
    assert dense < ours < 2 * dense
    assert math.log(ours / dense) < 0.5 * math.log(theirs / dense)


def test_heads_cost_more_the_more_go(windows: list[torch.Tensor]) -> None:
    dense = perplexity(load_checkpoint(STORIES).model, windows)
    found = [perplexity(pruned("drop_heads", windows, share=share), windows) for share in (0.2, 0.5, 0.7)]
    assert dense < found[0] < found[1] < found[2]
    assert found[0] < 1.3 * dense


def test_loss_chooses_better_blocks_than_influence(windows: list[torch.Tensor]) -> None:
    by_loss = perplexity(pruned("drop_layers", windows, share=0.4), windows)
    by_influence = perplexity(pruned("drop_layers", windows, share=0.4, criterion="influence"), windows)
    assert by_loss <= by_influence
