"""Every registered method, built in or not, keeps the same promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from agentic_compression.checkpoints import CheckpointOrigin, load_checkpoint, save_checkpoint
from agentic_compression.methods import CompressionContext, Method, describe_methods, get_method, search_space
from agentic_compression.methods.calibration import calibration_tokens
from agentic_compression.records import Stage, Strategy
from tests.unit.methods.tiny_models import logits, tiny_model, tiny_tokenizer, write_text

NAMES = [description.name for description in describe_methods() if description.available]


def run(method: Method, folder: Path, seed: int = 0) -> torch.nn.Module:
    text = write_text(folder / "text.jsonl")
    windows = calibration_tokens(text, tiny_tokenizer(), samples=12, tokens=40, seed=seed)
    context = CompressionContext(seed=seed, calibration=windows if method.needs_calibration else None)
    model: torch.nn.Module = method.apply(tiny_model("odd"), method.config(), context).model
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
    assert search_space(4).problem_with(Strategy(stages=(Stage(method=name),))) is None
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
    first = run(method, tmp_path)
    torch.manual_seed(2)
    second = run(method, tmp_path)
    assert torch.equal(logits(first), logits(second))
    assert bool(torch.isfinite(logits(first)).all())
    assert not torch.equal(logits(first), logits(tiny_model("odd")))
    reference = save_checkpoint(first, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin())
    loaded = load_checkpoint(reference.path)
    assert torch.equal(logits(loaded.model), logits(first))
    assert not loaded.model.training


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
