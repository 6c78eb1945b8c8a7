"""A strategy in the words of other tools: llm-compressor's recipe, AutoRound's arguments, this framework's own file.

The recipe is of llm-compressor 0.14, the arguments of auto-round 0.15. A stage without a counterpart is named, with the
reason, in every file: what is left of the strategy is then another one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agentic_compression.checkpoints.manifest import CheckpointManifest, PackedModule
from agentic_compression.errors import CompressionError
from agentic_compression.methods import read_strategy, search_space
from agentic_compression.records import Stage, Strategy

__all__ = ["Recipe", "output_name", "recipe_of", "write_recipe"]

_ROUTERS = r"re:.*\.(gate|router|classifier|score)$"
_PRUNING = frozenset({"magnitude", "wanda", "sparsegpt"})
_QUANTIZING = frozenset({"rtn", "gptq", "awq", "autoround", "mixed_precision", "int8", "fp8"})
_LONGEST = 8


@dataclass(frozen=True)
class Recipe:
    """A strategy for other tools.

    Attributes:
        strategy: with every default written out.
        modifiers: llm-compressor's, in order, with their arguments; empty when no stage has one.
        auto_round: arguments of ``auto_round.AutoRound``; None when no stage is AutoRound's.
        notes: stages without a counterpart, and in what the others differ, one line each.
    """

    strategy: Strategy
    modifiers: tuple[tuple[str, dict[str, Any]], ...]
    auto_round: dict[str, Any] | None
    notes: tuple[str, ...]


@dataclass
class _Draft:
    """What the stages so far came to."""

    groups: dict[str, Any] | None
    ignore: list[str]
    modifiers: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def output_name(folder: Path) -> str | None:
    """The name of a model's output embedding, which methods leave alone; None where it cannot be found out."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError):  # an architecture that transformers does not know
        return None
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def recipe_of(manifest: CheckpointManifest, output: str | None = None) -> Recipe:
    """Translate what was done to a checkpoint.

    Args:
        manifest: of the checkpoint.
        output: name of its output embedding; None when not known, and it is then said.
    """
    strategy = search_space(_LONGEST).complete(manifest.strategy)
    packed = {name: item for name, item in manifest.modules.items() if isinstance(item, PackedModule)}
    ignore = [output or "lm_head", _ROUTERS]
    draft = _Draft(groups=_config_groups(packed) if packed else None, ignore=ignore)
    pruned = ""
    for stage in strategy.stages:
        if stage.method in _QUANTIZING and pruned:
            draft.notes.append(
                f"{stage.method} after {pruned}: llm-compressor keeps no mask of zeros while it quantizes, so weights "
                "that were pruned may come back; count them in what it makes"
            )
        pruned = stage.method if stage.method in _PRUNING else pruned
        if stage.when is not None:
            draft.notes.append(f"{stage.method}: its condition ({stage.when.label}) was met; other tools know none")
        translate = _TRANSLATIONS.get(stage.method)
        if translate is not None:
            translate(stage.parameters, draft)
        else:
            reason = _WITHOUT.get(stage.method, "is a method that llm-compressor does not have")
            draft.notes.append(f"{stage.method}: no counterpart, it {reason}")
    if any(name.endswith((".down", ".up")) for name in packed):
        draft.notes.append("targets that end in .down or .up are factors of low-rank layers, which other tools lack")
    if output is None:
        draft.notes.append("the output embedding's name could not be found out; lm_head is what the files ignore")
    rounded = next((stage for stage in strategy.stages if stage.method == "autoround"), None)
    return Recipe(
        strategy=strategy,
        modifiers=tuple(draft.modifiers),
        auto_round=None if rounded is None else _auto_round(rounded, packed),
        notes=tuple(draft.notes),
    )


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write ``strategy.json`` and what else there is, and read each file back.

    Raises:
        CompressionError: when a file does not say what was meant.
    """
    own = folder / "strategy.json"
    own.write_text(_json({"strategy": json.loads(recipe.strategy.model_dump_json(exclude_none=True))["stages"]}))
    if read_strategy(str(own)).key != recipe.strategy.key:
        raise CompressionError(f"{own.name} must hold the strategy {recipe.strategy.label}, it reads as another")
    if recipe.modifiers:
        stages = _stages(recipe.modifiers)
        text = "".join(f"# {line}\n" for line in _comments(recipe)) + yaml.safe_dump(stages, sort_keys=False)
        (folder / "llm_compressor.yaml").write_text(text, encoding="utf-8")
        if yaml.safe_load(text) != json.loads(json.dumps(stages)):
            raise CompressionError("llm_compressor.yaml reads as something else than was written")
    if recipe.auto_round is not None:
        (folder / "auto_round.json").write_text(_json(recipe.auto_round), encoding="utf-8")
    (folder / "not_translated.json").write_text(_json(list(recipe.notes)), encoding="utf-8")


def _stages(modifiers: tuple[tuple[str, dict[str, Any]], ...]) -> dict[str, Any]:
    """llm-compressor's recipe: one stage, or one a modifier where a name comes twice."""
    if len({name for name, _ in modifiers}) == len(modifiers):
        return {"compression_stage": {"compression_modifiers": dict(modifiers)}}
    return {
        f"step{number}_stage": {"compression_modifiers": {name: values}}
        for number, (name, values) in enumerate(modifiers, start=1)
    }


def _comments(recipe: Recipe) -> list[str]:
    lines = ["For llm-compressor 0.14: oneshot(model=..., dataset=..., recipe='llm_compressor.yaml')"]
    return lines + [" ".join(f"NOT IN THIS RECIPE OR DIFFERENT - {note}".split()) for note in recipe.notes]


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _weights(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """compressed-tensors' description of the weights of one scheme."""
    size = int(parameters.get("group_size", -1))
    return {
        "num_bits": int(parameters["bits"]),
        "type": "int",
        "symmetric": bool(parameters.get("symmetric", True)),
        "strategy": "channel" if size == -1 else "group",
        **({} if size == -1 else {"group_size": size}),
        "observer": "mse" if parameters.get("least_error") else "minmax",
    }


def _config_groups(packed: Mapping[str, PackedModule]) -> dict[str, Any]:
    """The schemes that the layers really got; the most frequent one is that of all linears not named."""
    by_scheme: dict[PackedModule, list[str]] = {}
    for name, item in packed.items():
        by_scheme.setdefault(item, []).append(name)
    ordered = sorted(by_scheme.items(), key=lambda pair: -len(pair[1]))
    return {
        f"group_{number}": {
            "targets": ["Linear"] if number == 0 else names,
            "weights": _weights({"bits": item.bits, "group_size": item.group_size, "symmetric": item.symmetric}),
        }
        for number, (item, names) in enumerate(ordered)
    }


def _schemes(parameters: Mapping[str, Any], draft: _Draft) -> dict[str, Any]:
    """Arguments that every quantizing modifier takes; the observer is the stage's."""
    groups = copy.deepcopy(draft.groups) or {"group_0": {"targets": ["Linear"], "weights": _weights(parameters)}}
    observer = "mse" if parameters.get("least_error") else "minmax"
    for group in groups.values():
        group["weights"]["observer"] = observer
    return {"config_groups": groups, "ignore": list(draft.ignore)}


def _rtn(parameters: Mapping[str, Any], draft: _Draft) -> None:
    draft.modifiers.append(("QuantizationModifier", _schemes(parameters, draft)))


def _gptq(parameters: Mapping[str, Any], draft: _Draft) -> None:
    order = "static" if parameters.get("act_order") else None
    values = {"dampening_frac": parameters.get("damp_percent", 0.01), "block_size": 128, "actorder": order}
    draft.modifiers.append(("GPTQModifier", _schemes(parameters, draft) | values))


def _awq(parameters: Mapping[str, Any], draft: _Draft) -> None:
    draft.modifiers.append(("AWQModifier", {"duo_scaling": False}))
    if parameters.get("rounding") == "gptq":
        _gptq({"least_error": False} | dict(parameters), draft)
    else:
        _rtn(parameters, draft)
    if parameters.get("clip"):
        draft.notes.append("awq: ranges of groups were shrunk (clip=true), which AWQModifier does not do")


def _autoround(parameters: Mapping[str, Any], draft: _Draft) -> None:
    values = _schemes(parameters, draft) | {"iters": int(parameters.get("iters", 50))}
    draft.modifiers.append(("AutoRoundModifier", values))


def _mixed(parameters: Mapping[str, Any], draft: _Draft) -> None:
    values = {"bits": 4, **parameters}
    if values.get("group_size") == "free":
        values["group_size"] = 64
    (_gptq if parameters.get("rounding") == "gptq" else _autoround)(values, draft)
    draft.notes.append("mixed_precision: the widths found for this model are written out, not the search for them")


def _int8(parameters: Mapping[str, Any], draft: _Draft) -> None:
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "observer": "minmax"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    draft.modifiers.append(
        ("QuantizationModifier", {"config_groups": {"group_0": group}, "ignore": list(draft.ignore)})
    )
    if parameters.get("threshold"):
        draft.notes.append("int8: columns of outliers were multiplied in floating point (threshold), here they are not")


def _fp8(parameters: Mapping[str, Any], draft: _Draft) -> None:
    draft.modifiers.append(
        ("QuantizationModifier", {"targets": ["Linear"], "scheme": "FP8_DYNAMIC", "ignore": list(draft.ignore)})
    )


def _pruning(parameters: Mapping[str, Any], draft: _Draft) -> dict[str, Any]:
    if parameters.get("pattern") == "2:4":
        return {"sparsity": 0.5, "mask_structure": "2:4", "targets": ["Linear"], "ignore": list(draft.ignore)}
    share = float(parameters.get("sparsity", 0.5))
    return {"sparsity": share, "mask_structure": "0:0", "targets": ["Linear"], "ignore": list(draft.ignore)}


def _sparsegpt(parameters: Mapping[str, Any], draft: _Draft) -> None:
    damping = {"dampening_frac": parameters.get("damp_percent", 0.01), "block_size": 128}
    draft.modifiers.append(("SparseGPTModifier", _pruning(parameters, draft) | damping))
    if parameters.get("pattern") != "2:4" and parameters.get("compare", "row") == "row":
        draft.notes.append("sparsegpt: weights competed within rows (compare=row), SparseGPTModifier compares blocks")


def _wanda(parameters: Mapping[str, Any], draft: _Draft) -> None:
    draft.modifiers.append(("WandaPruningModifier", _pruning(parameters, draft)))


def _auto_round(stage: Stage, packed: Mapping[str, PackedModule]) -> dict[str, Any]:
    """Keyword arguments of ``AutoRound``; layers whose scheme differs from the usual one are in ``layer_config``."""
    values = stage.parameters
    usual = {"bits": int(values["bits"]), "group_size": int(values["group_size"]), "sym": bool(values["symmetric"])}
    layers = {
        name: scheme
        for name, item in packed.items()
        if (scheme := {"bits": item.bits, "group_size": item.group_size, "sym": item.symmetric}) != usual
    }
    return {**usual, "iters": int(values["iters"]), "layer_config": layers}


_Translation = Callable[[Mapping[str, Any], _Draft], None]
_TRANSLATIONS: dict[str, _Translation] = {
    "rtn": _rtn,
    "gptq": _gptq,
    "awq": _awq,
    "autoround": _autoround,
    "mixed_precision": _mixed,
    "int8": _int8,
    "fp8": _fp8,
    "sparsegpt": _sparsegpt,
    "wanda": _wanda,
}
_WITHOUT = {
    "magnitude": "prunes at once, where llm-compressor's MagnitudePruningModifier prunes step by step in training",
    "nf4": "stores NormalFloat codes, which bitsandbytes alone makes (BitsAndBytesConfig(load_in_4bit=True, "
    "bnb_4bit_quant_type='nf4'))",
    "gguf": "writes llama.cpp's blocks, which llama-quantize makes from a float GGUF file",
    "drop_layers": "changes the architecture",
    "drop_heads": "changes the architecture",
    "drop_channels": "changes the architecture",
    "asvd": "factorizes layers",
    "svd_llm": "factorizes layers",
    "lora": "trains the model",
    "qlora": "trains the model",
    "distill": "trains the model",
}
