"""Small checkpoints of every way to store a layer, made by the methods themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from agentic_compression.checkpoints import CheckpointOrigin, save_checkpoint
from agentic_compression.checkpoints.adapted_linear import AdaptedLinear
from agentic_compression.checkpoints.low_rank_linear import LowRankLinear
from agentic_compression.methods import CompressionContext, get_method
from agentic_compression.methods.fp8 import METHOD as FP8
from agentic_compression.records import Strategy
from tests.unit.methods.tiny_models import tiny_model, tiny_tokenizer

STRATEGIES = {
    "dense": "",
    "rtn4": "rtn:bits=4,group_size=32",
    "rtn8": "rtn:bits=8,group_size=-1,symmetric=true",
    "int8": "int8",
    "nf4": "nf4",
    "fp8": "fp8",
    "zeros": "magnitude:sparsity=0.5",
}
BY_HAND = ("low_rank", "low_rank_packed", "adapted", "zeros_and_int8")


def applied(model: Any, text: str) -> Any:
    """A model after the stages of a strategy that needs no calibration."""
    for stage in Strategy.parse(text).stages:
        method = FP8 if stage.method == "fp8" else get_method(stage.method)
        model = method.apply(model, method.config.model_validate(stage.parameters), CompressionContext()).model
    return model


def made(name: str, folder: Path) -> Path:
    """The checkpoint of this name in a new folder."""
    kind = "biases" if name in {"int8", "low_rank"} else "tied" if name in {"rtn8", "zeros"} else "llama"
    model = tiny_model(kind)
    strategy = STRATEGIES.get(name, "")
    if name in BY_HAND:
        _by_hand(model, name)
    else:
        applied(model, strategy)
    origin = CheckpointOrigin(base_digest="tiny", strategy=Strategy.parse(strategy))
    return Path(save_checkpoint(model, tiny_tokenizer(), folder, origin).path)


def _by_hand(model: Any, name: str) -> None:
    layer = model.model.layers[0]
    if name == "zeros_and_int8":
        applied(model, "int8")
        with torch.no_grad():
            model.lm_head.weight[:, ::2] = 0
        return
    if name == "adapted":
        linear = layer.mlp.up_proj
        down, up = (torch.nn.Linear(*shape, bias=False, dtype=torch.bfloat16) for shape in ((64, 4), (4, 128)))
        applied(model, "rtn:bits=4,group_size=32")
        layer.mlp.up_proj = AdaptedLinear(layer.mlp.up_proj, down, up)
        assert linear.weight.shape == (128, 64)
        return
    pair = LowRankLinear(torch.nn.Linear(64, 32, bias=False), torch.nn.Linear(32, 128, bias=False))
    for factor in pair.parameters():
        torch.nn.init.normal_(factor, std=0.2)
    layer.mlp.up_proj = pair
    if name == "low_rank_packed":
        applied(model, "rtn:bits=8,group_size=32")
