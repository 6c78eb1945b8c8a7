"""ASVD: the scaled error is that of the discarded singular values, and no other pair of that rank does better."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from agentic_compression.checkpoints.low_rank_linear import LowRankLinear
from agentic_compression.methods import CompressionContext, get_method
from agentic_compression.methods.asvd import AsvdConfig, apply, factorize
from agentic_compression.methods.linear_layers import target_linears
from tests.unit.methods.tiny_models import logits, random_windows, tiny_model


def weight_and_sizes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 16, generator=generator)
    return weight, torch.rand(16, generator=generator) * 5 + 0.01


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("rank", [1, 6, 15])
def test_scaled_error_is_that_of_the_discarded_singular_values(rank: int, alpha: float) -> None:
    weight, size = weight_and_sizes()
    down, up = factorize(weight, rank, size, alpha)
    assert down.shape == (rank, 16)
    assert up.shape == (24, rank)
    scale = [float(value) ** alpha for value in size.double()]
    scaled = np.array([[float(w) * s for w, s in zip(row, scale, strict=True)] for row in weight.double()])
    tail = np.linalg.svd(scaled, compute_uv=False)[rank:]
    product = (up @ down).numpy()
    squares = [
        ((product[i, j] - float(weight[i, j])) * scale[j]) ** 2 for i in range(24) for j in range(16)
    ]  # the weighed error, entry by entry
    assert math.fsum(squares) == pytest.approx(float((tail**2).sum()), rel=1e-9)


def test_no_small_change_of_the_factors_does_better() -> None:
    weight, size = weight_and_sizes()
    down, up = factorize(weight, 5, size, 0.5)
    scale = size.double().sqrt()
    best = float(torch.linalg.norm((up @ down - weight) * scale))
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        other_up = up + 1e-2 * torch.randn(up.shape, generator=generator, dtype=torch.float64)
        # For fixed `up` the best `down` follows by least squares: every competitor is the best of its kind.
        other_down = torch.linalg.lstsq(other_up, weight * scale).solution / scale
        assert float(torch.linalg.norm((other_up @ other_down - weight) * scale)) >= best


def test_dead_inputs_and_alpha_zero_are_harmless() -> None:
    weight, size = weight_and_sizes()
    size[3] = 0
    down, up = factorize(weight, 4, size, 1.0)
    assert bool(torch.isfinite(down).all() & torch.isfinite(up).all())
    assert float(down.abs().max()) < 100
    plain = factorize(weight, 4)
    same = factorize(weight, 4, size, 0.0)
    assert torch.allclose(same[1] @ same[0], plain[1] @ plain[0])


def test_alpha_zero_needs_no_text_and_covers_every_linear_but_the_head() -> None:
    method = get_method("asvd")
    config = AsvdConfig(rank_ratio=0.5, alpha=0)
    assert not method.needs_calibration_for(config)
    assert method.needs_calibration_for(AsvdConfig())
    seen: list[tuple[int, int]] = []
    context = CompressionContext(progress=lambda _, done, total: seen.append((done, total)))
    model = apply(tiny_model("biases"), config, context).model
    assert sum(isinstance(module, LowRankLinear) for module in model.modules()) == 14
    assert seen == [(done, 14) for done in range(15)]
    assert type(model.lm_head) is torch.nn.Linear


def test_scales_are_the_means_of_absolute_inputs() -> None:
    model = tiny_model()
    sizes: dict[str, torch.Tensor] = {}
    name = "model.layers.0.mlp.gate_proj"
    linear = model.get_submodule(name)
    weight = linear.weight.detach().clone()
    handle = linear.register_forward_pre_hook(
        lambda _, args: sizes.__setitem__(name, args[0].detach().double().abs().mean(dim=(0, 1)))
    )
    logits_before = logits(model)
    model(input_ids=torch.cat(random_windows()))
    handle.remove()
    made = apply(model, AsvdConfig(rank_ratio=0.5), CompressionContext(calibration=random_windows())).model
    pair = made.get_submodule(name)
    down, up = factorize(weight, pair.down.out_features, sizes[name], 0.5)
    assert torch.allclose((pair.up.weight @ pair.down.weight).double(), up @ down, atol=1e-5)
    assert not torch.equal(logits(made), logits_before)
    assert not any(name == "lm_head" for name, _ in target_linears(made))
