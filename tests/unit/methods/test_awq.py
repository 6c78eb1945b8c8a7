"""AWQ against the paper's formulas in float64 with plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.errors import CompressionError
from agentic_compression.methods.awq import (
    METHOD,
    AwqConfig,
    apply,
    channel_scales,
    clipped_grid,
    output_error,
    round_weight,
    search_alpha,
)
from agentic_compression.methods.interface import CompressionContext
from tests.unit.methods.test_gptq import correlated
from tests.unit.methods.test_rtn import bfloat16
from tests.unit.methods.tiny_models import logits, tiny_model


def calibration(windows: int = 8, tokens: int = 48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(2, 250, (1, tokens), generator=generator) for _ in range(windows)]


def inputs_with_outliers(channels: int, rows: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, channels, generator=generator)
    x[:, ::9] *= 12
    return x


def rounded(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    made = np.zeros_like(weight)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group]
            smallest = min(part.min(), 0.0)
            scale = float(bfloat16(np.array([(max(part.max(), 0.0) - smallest) / (2**bits - 1)]))[0])
            zero = min(max(round(-smallest / scale) + low, low), high)
            for offset, value in enumerate(part):
                code = min(max(round(value / scale) + zero, low), high)
                made[row, start + offset] = scale * (code - zero)
    return made


def reference(weights: list[np.ndarray], x: np.ndarray, bits: int, group: int) -> tuple[float, np.ndarray, list[float]]:
    """Error of the layers' outputs on the inputs themselves, for every α."""
    importance = np.array([sum(abs(value) for value in column) / len(column) for column in x.T])
    errors, found = [], []
    for step in range(20):
        scales = np.array([value ** (step / 20) for value in importance])
        scales = scales / math.sqrt(scales.max() * scales.min())
        error = 0.0
        for weight in weights:
            made = rounded(weight * scales, bits, group) / scales
            error += float((((made - weight) @ x.T) ** 2).sum()) / len(x)
        errors.append(error)
        found.append(scales)
    best = int(np.argmin(errors))
    return best / 20, found[best], errors


@pytest.mark.parametrize("bits", [3, 4])
def test_alpha_and_scales_match_the_reference(bits: int) -> None:
    x = inputs_with_outliers(64)
    weights = [torch.randn(6, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    gram = x.T @ x / len(x)
    config = AwqConfig(bits=bits, group_size=32)
    alpha, scales = search_alpha(weights, gram, x.abs().mean(dim=0), torch.arange(64), config)
    expected_alpha, expected, errors = reference(
        [weight.double().numpy() for weight in weights], x.double().numpy(), bits, 32
    )
    assert alpha == expected_alpha
    assert alpha > 0
    assert np.allclose(scales.numpy(), expected, rtol=1e-5)
    restored = [round_weight(weight * scales, config, None).dequantize() / scales for weight in weights]
    ours = sum(output_error(made - weight, gram) for made, weight in zip(restored, weights, strict=True))
    assert ours == pytest.approx(min(errors), rel=1e-3)
    assert ours < errors[0]


def test_channels_that_share_a_scale_count_with_their_mean() -> None:
    x = inputs_with_outliers(64)
    source = torch.tensor([*range(32), *range(32)])
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    alpha, scales = search_alpha([weight], x.T @ x / 256, x.abs().mean(dim=0), source, AwqConfig(group_size=32))
    assert scales.shape == (32,)
    assert torch.allclose(scales, channel_scales(x.abs().mean(dim=0).view(2, 32).mean(dim=0), alpha))


def test_silent_channels_and_no_input_at_all_give_finite_scales() -> None:
    some = torch.tensor([0.0, 1.0, 2.0, 0.0])
    assert bool(torch.isfinite(channel_scales(some, 0.95)).all())
    assert torch.equal(channel_scales(torch.zeros(4), 0.5), torch.ones(4))


@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_lowers_every_groups_own_error(symmetric: bool) -> None:
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(1)) ** 3
    gram = correlated(96)
    plain = AwqConfig(bits=3, group_size=32, symmetric=symmetric, rounding="nearest", clip=False)
    clipped = plain.model_copy(update={"clip": True})
    for start in range(0, 96, 32):
        part = slice(start, start + 32)
        errors = [
            torch.einsum("oi,ij,oj->o", d[:, part], gram[part, part], d[:, part])
            for d in (round_weight(weight, config, gram).dequantize() - weight for config in (plain, clipped))
        ]
        assert bool((errors[1] <= errors[0] * 1.0001).all())
        assert float(errors[1].sum()) < 0.95 * float(errors[0].sum())
    scale, _ = clipped_grid(weight.view(16, 3, 32), gram, clipped)
    assert bool((scale <= round_weight(weight, plain, gram).scale.float()).all())


def test_column_repair_lowers_the_output_error_and_keeps_pruned_weights() -> None:
    weight = torch.randn(16, 160, generator=torch.Generator().manual_seed(1))
    weight[:, ::5] = 0
    gram = correlated(160)
    nearest = AwqConfig(bits=3, group_size=32, rounding="nearest")
    repaired = AwqConfig(bits=3, group_size=32, rounding="gptq")
    made = round_weight(weight, repaired, gram).dequantize()
    assert output_error(made - weight, gram) < 0.8 * output_error(
        round_weight(weight, nearest, gram).dequantize() - weight, gram
    )
    assert bool((made[:, ::5] == 0).all())


@pytest.mark.parametrize("kind", ["llama", "biases", "tied", "odd"])
def test_eight_bits_keep_the_model_and_every_linear_is_packed(kind: str) -> None:
    model = tiny_model(kind)
    before = logits(model)
    result = apply(model, AwqConfig(bits=8, group_size=32), CompressionContext(calibration=calibration()))
    assert float((logits(result.model) - before).norm() / before.norm()) < 0.03
    assert sum(isinstance(module, PackedLinear) for module in result.model.modules()) == 14
    assert torch.equal(result.model.lm_head.weight, tiny_model(kind).lm_head.weight)
    assert any("does not divide 172" in note for note in result.notes) == (kind == "odd")
    norm = result.model.model.layers[0].input_layernorm.weight
    assert not torch.equal(norm, tiny_model(kind).model.layers[0].input_layernorm.weight)


def test_models_with_no_place_for_scales_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentic_compression.methods.folding._Probe.folds", lambda probe: [])
    with pytest.raises(CompressionError, match=r"LlamaForCausalLM.*use gptq or autoround"):
        apply(tiny_model(), AwqConfig(), CompressionContext(calibration=calibration()))


def test_infinite_activations_are_refused_by_layer() -> None:
    model = tiny_model()
    model.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(CompressionError, match=r"layers\.1\."):
        apply(model, AwqConfig(), CompressionContext(calibration=calibration()))


def test_a_method_without_text_says_so() -> None:
    with pytest.raises(CompressionError, match="awq needs calibration text"):
        METHOD.apply(tiny_model(), AwqConfig(), CompressionContext())
