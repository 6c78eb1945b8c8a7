"""Small checkpoints of every way to store a layer, made by the methods themselves; their exports, made here."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from agentic_compression.checkpoints import CheckpointOrigin, save_checkpoint
from agentic_compression.checkpoints.adapted_linear import AdaptedLinear
from agentic_compression.checkpoints.low_rank_linear import LowRankLinear
from agentic_compression.errors import AcfError
from agentic_compression.export.build import BuildRequest, Built, build
from agentic_compression.export.check import CheckRequest, check, tolerance_of
from agentic_compression.export.plan import plan_export, without_own_grid
from agentic_compression.methods import CompressionContext, get_method
from agentic_compression.methods.fp8 import METHOD as FP8
from agentic_compression.records import ExportCheck, ExportFormat, Record, Strategy
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


def built(source: Path, wanted: ExportFormat, folder: Path, gguf_type: str | None = None) -> Built:
    """An export of the first type that is planned, or that is left where no layer keeps its codes; unchecked."""
    plan = plan_export(source, wanted, gguf_type)
    folder.mkdir()
    first = plan.gguf_types[0] if plan.gguf_types else None
    asked = BuildRequest(source=str(source), folder=str(folder), plan=plan, gguf_type=first)
    done = build(asked)
    if done.form:
        return done
    assert not list(folder.iterdir())
    return build(asked.model_copy(update={"gguf_type": without_own_grid(plan.gguf_types)[0]}))


def checked(source: Path, wanted: ExportFormat, folder: Path, *, rounds: bool = False) -> ExportCheck:
    """An export compared with its checkpoint."""
    tolerance = tolerance_of(rounds_activations=rounds)
    return check(CheckRequest(source=str(source), folder=str(folder), format=wanted, tolerance=tolerance))


class InProcess:
    """Runs a child's entry here."""

    def run(self, entry: str, request: Record, **_: Any) -> Any:
        module, name = entry.split(":")
        try:
            result: Record = getattr(importlib.import_module(module), name)(request)
        except AcfError as error:
            return SimpleNamespace(result=None, error=str(error))
        return SimpleNamespace(result=result.model_dump(mode="json"), error=None)
