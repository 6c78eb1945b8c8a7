"""Recipes for other tools say what was done, and name what they cannot say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.utils.match import match_named_modules

from agentic_compression.checkpoints.manifest import CheckpointManifest, PackedModule
from agentic_compression.cli.export import _lines as lines_of
from agentic_compression.errors import ConfigurationError
from agentic_compression.export import ExportRequest, export_checkpoint
from agentic_compression.export.plan import plan_export
from agentic_compression.export.recipe import Recipe, output_name, recipe_of, write_recipe
from agentic_compression.methods import describe_methods, read_strategy
from agentic_compression.records import Strategy
from agentic_compression.settings import Settings
from tests.unit.export.checkpoints import made

QUANTIZERS = ("rtn", "gptq", "awq", "autoround", "mixed_precision", "int8", "fp8")


def recipe(text: str, modules: dict[str, Any] | None = None) -> Recipe:
    manifest = CheckpointManifest(base_digest="x", strategy=Strategy.parse(text), modules=modules or {})
    return recipe_of(manifest, "lm_head")


@pytest.mark.parametrize("name", [method.name for method in describe_methods()])
def test_every_method_is_translated_or_named(name: str, tmp_path: Path) -> None:
    found = recipe(name)
    assert found.modifiers or any(note.startswith(f"{name}: no counterpart") for note in found.notes)
    write_recipe(found, tmp_path)
    assert read_strategy(str(tmp_path / "strategy.json")).key == found.strategy.key
    assert json.loads((tmp_path / "not_translated.json").read_text()) == list(found.notes)
    assert (tmp_path / "llm_compressor.yaml").exists() == bool(found.modifiers)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "fp8"])
def test_schemes_are_ones_that_compressed_tensors_accepts(name: str) -> None:
    groups = [values["config_groups"] for _, values in recipe(name).modifiers if "config_groups" in values]
    assert groups
    for group in groups[0].values():
        scheme = QuantizationScheme.model_validate(group)
        assert scheme.weights is not None


def test_parameters_arrive() -> None:
    found = recipe("sparsegpt:pattern=2:4,damp_percent=0.05 | gptq:bits=8,group_size=32,act_order=true,symmetric=true")
    (first, pruning), (second, rounding) = found.modifiers
    assert (first, second) == ("SparseGPTModifier", "GPTQModifier")
    assert pruning["mask_structure"] == "2:4"
    assert pruning["dampening_frac"] == 0.05
    assert rounding["actorder"] == "static"
    assert rounding["dampening_frac"] == 0.01
    weights = rounding["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (8, 32, True)
    assert weights["observer"] == "mse"


def test_the_widths_that_layers_really_got_are_written() -> None:
    few, many = (PackedModule(bits=bits, group_size=64, symmetric=False) for bits in (8, 4))
    modules = {"a": many, "b": many, "c": few}
    found = recipe("autoround:bits=4,group_size=64", modules)
    groups = found.modifiers[0][1]["config_groups"]
    assert groups["group_0"]["targets"] == ["Linear"]
    assert groups["group_1"]["targets"] == ["c"]
    assert groups["group_1"]["weights"]["num_bits"] == 8
    assert found.auto_round is not None
    assert found.auto_round["layer_config"] == {"c": {"bits": 8, "group_size": 64, "sym": False}}


def test_auto_round_takes_the_arguments() -> None:
    auto_round = pytest.importorskip("auto_round")
    import inspect

    found = recipe("autoround")
    assert found.auto_round is not None
    known = set(inspect.signature(auto_round.AutoRound.__new__).parameters) | {"sym", "bits", "group_size"}
    assert set(found.auto_round) <= known


def test_two_stages_of_one_modifier_both_stay(tmp_path: Path) -> None:
    write_recipe(recipe("wanda:sparsity=0.3 | wanda:sparsity=0.5"), tmp_path)
    stages = yaml.safe_load((tmp_path / "llm_compressor.yaml").read_text())
    assert all(stage.endswith("_stage") for stage in stages), "llm-compressor passes over other names"
    shares = [values["sparsity"] for stage in stages.values() for group in stage.values() for values in group.values()]
    assert shares == [0.3, 0.5]


def test_the_file_itself_names_what_it_leaves_out(tmp_path: Path) -> None:
    write_recipe(recipe("drop_layers | gptq"), tmp_path)
    assert "drop_layers: no counterpart, it changes the architecture" in (tmp_path / "llm_compressor.yaml").read_text()


def test_a_model_to_which_nothing_was_done_has_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing was done"):
        plan_export(made("dense", tmp_path / "dense"), "recipe")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("zeros", "recipe, strategy.json for 'acf compress' alone: no stage has a form in other tools: "),
        ("rtn4", "recipe: "),
    ],
)
def test_the_first_line_says_whether_other_tools_can_use_it(name: str, told: str, tmp_path: Path) -> None:
    nobody: Any = None
    request = ExportRequest(source=str(made(name, tmp_path / name)), format="recipe", output=tmp_path / "made")
    record = export_checkpoint(request, Settings(ACF_HOME=tmp_path / "state"), nobody)
    line = next(lines_of(record))
    kilobytes = record.size_bytes / 1000
    assert line == f"{told}{kilobytes:.1f} kB in {tmp_path / 'made'}"
    assert (tmp_path / "made" / "llm_compressor.yaml").exists() == (name == "rtn4")
    assert next(lines_of(record.model_copy(update={"form": "Q8_0", "files": {"a": 2_340_000}}))).endswith(
        f", Q8_0: 2.34 MB in {tmp_path / 'made'}"
    )


def ignored(found: Recipe) -> list[list[str]]:
    return [values["ignore"] for _, values in found.modifiers if "ignore" in values]


@pytest.mark.parametrize("text", ["rtn", "gptq", "int8", "fp8", "wanda", "sparsegpt:pattern=2:4", "autoround"])
def test_layers_that_methods_leave_alone_are_ignored(text: str) -> None:
    """The names are the model's own, and routers of mixtures of experts are among them."""
    layers = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"gate": torch.nn.Linear(4, 4)})})
    layers["mlp"]["gate_proj"] = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"layers": layers, "embed_out": torch.nn.Linear(4, 4)})
    manifest = CheckpointManifest(base_digest="x", strategy=Strategy.parse(text))
    for ignore in ignored(recipe_of(manifest, "embed_out")):
        left = [name for name, _ in match_named_modules(model, ["Linear"], ignore)]
        assert left == ["layers.mlp.gate_proj"]
    assert ignored(recipe_of(manifest, "embed_out"))


def test_the_output_embedding_is_found_in_the_model(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16, is_decoder=True
    ).save_pretrained(tmp_path)
    assert output_name(tmp_path) == "cls.predictions.decoder"
    assert output_name(made("rtn8", tmp_path / "tied")) == "lm_head"
    (tmp_path / "config.json").write_text('{"model_type": "never-heard-of"}')
    assert output_name(tmp_path) is None
    manifest = CheckpointManifest(base_digest="x", strategy=Strategy.parse("rtn"))
    assert any("output embedding" in note for note in recipe_of(manifest).notes)


@pytest.mark.parametrize("quantizer", ["rtn", "gptq", "awq", "autoround", "int8", "fp8"])
def test_zeros_that_may_be_lost_are_named(quantizer: str, tmp_path: Path) -> None:
    found = recipe(f"wanda | {quantizer}")
    note = next(note for note in found.notes if note.startswith(f"{quantizer} after wanda: "))
    write_recipe(found, tmp_path)
    assert note in json.loads((tmp_path / "not_translated.json").read_text())
    assert not any(" after " in note for note in recipe(f"{quantizer} | wanda").notes)


def test_stages_do_not_share_their_schemes() -> None:
    packed = {"a": PackedModule(bits=4, group_size=32, symmetric=True)}
    found = recipe("rtn:bits=4,group_size=32,least_error=false | gptq:bits=4,group_size=32,least_error=true", packed)
    observers = [values["config_groups"]["group_0"]["weights"]["observer"] for _, values in found.modifiers]
    assert observers == ["minmax", "mse"]
