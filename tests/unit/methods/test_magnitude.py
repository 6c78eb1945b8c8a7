"""Magnitude pruning against a mask found by brute force."""

from __future__ import annotations

import pytest

from agentic_compression.methods import CompressionContext
from agentic_compression.methods.linear_layers import target_linears
from agentic_compression.methods.magnitude import MagnitudeConfig, apply
from tests.unit.methods.tiny_models import tiny_model


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_mask_matches_brute_force(sparsity: float) -> None:
    before = {name: linear.weight.detach().clone() for name, linear in target_linears(tiny_model())}
    model = apply(tiny_model(), MagnitudeConfig(sparsity=sparsity), CompressionContext()).model
    assert len(before) == 14
    assert "lm_head" not in before
    for name, linear in target_linears(model):
        flat = before[name].flatten().tolist()
        order = sorted(range(len(flat)), key=lambda index: (abs(flat[index]), index))
        pruned = set(order[: round(sparsity * len(flat))])
        expected = [0.0 if index in pruned else value for index, value in enumerate(flat)]
        assert linear.weight.flatten().tolist() == expected


def test_ties_are_cut_to_the_exact_count() -> None:
    model = tiny_model()
    for _, linear in target_linears(model):
        linear.weight.data.fill_(0.5)
    apply(model, MagnitudeConfig(sparsity=0.3), CompressionContext())
    for _, linear in target_linears(model):
        assert int((linear.weight == 0).sum()) == round(0.3 * linear.weight.numel())
