"""Mixed precision keeps its budget and puts bits where they matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import CompressionContext
from agentic_compression.methods.mixed_precision import METHOD, MixedPrecisionConfig, apply
from tests.unit.methods.tiny_models import logits, tiny_model


def context() -> CompressionContext:
    generator = torch.Generator().manual_seed(3)
    return CompressionContext(calibration=[torch.randint(2, 250, (1, 40), generator=generator) for _ in range(12)])


def packed(model: Any) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def bits_a_weight(model: Any) -> float:
    layers = packed(model).values()
    stored = sum(
        tensor.nbytes for layer in layers for name, tensor in layer.stored_tensors().items() if name != "weight_shape"
    )
    return 8 * stored / sum(layer.in_features * layer.out_features for layer in layers)


@pytest.mark.parametrize("kind", ["odd", "biases"])
@pytest.mark.parametrize("rounding", ["gptq", "autoround"])
@pytest.mark.parametrize("target", [3.0, 4.5])
def test_budget_is_kept_and_nearly_used(kind: str, rounding: str, target: float) -> None:
    config = MixedPrecisionConfig(target_bits=target, rounding=rounding, group_size="32", sensitivity="estimated")
    result = apply(tiny_model(kind), config, context())
    assert len(packed(result.model)) == 14
    assert target - 0.25 < bits_a_weight(result.model) <= target
    assert result.notes[0].startswith(f"{bits_a_weight(result.model):.3f} bits a weight")
    named = {note.partition(":")[0]: note for note in result.notes[1:]}
    for name, layer in packed(result.model).items():
        assert f"{layer.bits} bits, groups of {layer.group_size}" in named[name]


@pytest.mark.parametrize("sensitivity", ["measured", "estimated"])
def test_layers_that_do_nothing_get_the_fewest_bits(sensitivity: str) -> None:
    model = tiny_model()
    model.model.layers[0].mlp.down_proj.weight.data *= 1e-3
    model.model.layers[1].mlp.down_proj.weight.data *= 4
    config = MixedPrecisionConfig(target_bits=4.0, rounding="gptq", group_size="free", sensitivity=sensitivity)
    layers = packed(apply(model, config, context()).model)
    assert layers["model.layers.0.mlp.down_proj"].bits == 2
    assert layers["model.layers.0.mlp.gate_proj"].bits == 2
    assert layers["model.layers.1.mlp.down_proj"].bits >= 4


def test_more_bits_bring_the_model_closer() -> None:
    original = logits(tiny_model())
    errors = []
    for target in (2.75, 3.5, 5.0):
        config = MixedPrecisionConfig(target_bits=target, rounding="gptq", group_size="32")
        errors.append(float((logits(apply(tiny_model(), config, context()).model) - original).square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_an_average_below_the_smallest_says_what_is_possible() -> None:
    with pytest.raises(CompressionError, match=r"target_bits must be at least 2\.5\d* .*got 2\.25"):
        apply(tiny_model(), MixedPrecisionConfig(target_bits=2.25, group_size="32"), context())


def test_a_method_without_text_says_so() -> None:
    with pytest.raises(CompressionError, match="mixed_precision needs calibration text"):
        METHOD.apply(tiny_model(), MixedPrecisionConfig(), CompressionContext())
