"""Every registered method, built in or not, keeps the same promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from agentic_compression.checkpoints import CheckpointOrigin, load_checkpoint, save_checkpoint
from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaModel
from agentic_compression.errors import ModelError
from agentic_compression.methods import CompressionContext, Method, describe_methods, get_method, search_space
from agentic_compression.methods.calibration import calibration_tokens
from agentic_compression.methods.interface import Compressed
from agentic_compression.records import Stage, Strategy
from tests.unit.methods.tiny_models import logits, tiny_model, tiny_tokenizer, write_text

NAMES = [description.name for description in describe_methods() if description.available]


def compressed(method: Method, folder: Path, seed: int = 0) -> Compressed:
    text = write_text(folder / "text.jsonl")
    windows = calibration_tokens(text, tiny_tokenizer(), samples=12, tokens=40, seed=seed)
    context = CompressionContext(seed=seed, calibration=windows if method.needs_calibration else None)
    start = tiny_model("odd")
    if method.trains:  # there must be something to heal
        context = replace(context, training=windows, load_base=lambda: tiny_model("odd"))
        earlier = get_method("rtn" if "quantization" in method.may_follow else "magnitude")
        start = earlier.apply(start, earlier.config(), context).model
    config = method.config().model_copy(update={"steps": 8} if method.trains else {})
    return method.apply(start, config, context)


def run(method: Method, folder: Path, seed: int = 0) -> torch.nn.Module:
    model: torch.nn.Module = compressed(method, folder, seed).model
    return model


@pytest.mark.parametrize("name", NAMES)
def test_description_matches_schema(name: str) -> None:
    method = get_method(name)
    description = method.describe()
    properties = method.config.model_json_schema()["properties"]
    assert [parameter.name for parameter in description.parameters] == list(properties)
    for parameter in description.parameters:
        assert properties[parameter.name]["default"] == parameter.default
        assert parameter.description
        assert parameter.problem_with(parameter.default) is None
    assert description.summary
    assert description.paper
    assert description.version
    problem = search_space(4).problem_with(Strategy(stages=(Stage(method=name),)))
    assert ("must follow" in (problem or "")) if method.must_follow else problem is None
    assert Strategy.parse(description.example).stages[0].method == name


@pytest.mark.parametrize("name", NAMES)
def test_config_refuses_unknown_fields_and_values_out_of_range(name: str) -> None:
    config = get_method(name).config
    with pytest.raises(ValidationError):
        config.model_validate({"no_such_parameter": 1})
    for parameter in get_method(name).describe().parameters:
        for value in (-12345, 12345.5, "nonsense", None):
            with pytest.raises(ValidationError):
                config.model_validate({parameter.name: value})
        for allowed in parameter.values() or (parameter.low, parameter.high):
            config.model_validate({parameter.name: allowed})


@pytest.mark.parametrize("name", NAMES)
def test_apply_is_deterministic_and_survives_saving(name: str, tmp_path: Path) -> None:
    method = get_method(name)
    torch.manual_seed(1)
    result = compressed(method, tmp_path)
    torch.manual_seed(2)
    again = compressed(method, tmp_path)
    if result.gguf is not None:
        check_file(result, again, tmp_path)
        return
    first, second = result.model, again.model
    assert torch.equal(logits(first), logits(second))
    assert bool(torch.isfinite(logits(first)).all())
    assert not torch.equal(logits(first), logits(tiny_model("odd")))
    reference = save_checkpoint(first, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin())
    loaded = load_checkpoint(reference.path)
    assert torch.equal(logits(loaded.model), logits(first))
    assert not loaded.model.training


def check_file(result: Compressed, again: Compressed, folder: Path) -> None:
    """The same promises of a method whose result is a file for another engine: the model in memory stays as it is."""
    made = [folder / name for name in ("made", "again")]
    for path, each in zip(made, (result, again), strict=True):
        save_checkpoint(each.model, tiny_tokenizer(), path, CheckpointOrigin(), gguf=each.gguf)
    assert (made[0] / "model.gguf").read_bytes() == (made[1] / "model.gguf").read_bytes()
    with LlamaModel(made[0] / "model.gguf") as loaded:
        ids = list(range(2, 26))
        context = loaded.context(ContextOptions(tokens=64, exact=True))
        found = torch.from_numpy(context.decode(ids, range(24), [0] * 24, [True] * 24))
    expected = tiny_model("odd")(input_ids=torch.tensor([ids])).logits[0].detach()
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.2
    with pytest.raises(ModelError, match=r"llama\.cpp"):
        load_checkpoint(made[0])


@pytest.mark.parametrize("name", NAMES)
def test_output_embedding_is_untouched(name: str, tmp_path: Path) -> None:
    model = run(get_method(name), tmp_path)
    assert torch.equal(model.lm_head.weight, tiny_model("odd").lm_head.weight)


@pytest.mark.parametrize("name", NAMES)
def test_calibrated_method_says_so_when_there_is_no_text(name: str) -> None:
    method = get_method(name)
    if not method.needs_calibration:
        pytest.skip(f"{name} needs no calibration")
    with pytest.raises(Exception, match="calibration"):
        method.apply(tiny_model(), method.config(), CompressionContext())
