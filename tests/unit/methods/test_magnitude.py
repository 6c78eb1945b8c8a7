"""Magnitude pruning against a mask found by brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.methods import CompressionContext
from agentic_compression.methods.linear_layers import target_linears
from agentic_compression.methods.magnitude import MagnitudeConfig, apply, magnitude_mask
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


def test_two_four_zeroes_the_smaller_two_of_every_four_whatever_the_sparsity() -> None:
    before = {name: linear.weight.detach().clone() for name, linear in target_linears(tiny_model("odd"))}
    model = apply(tiny_model("odd"), MagnitudeConfig(sparsity=0.9, pattern="2:4"), CompressionContext()).model
    for name, linear in target_linears(model):
        for four, was in zip(linear.weight.view(-1, 4).tolist(), before[name].view(-1, 4).tolist(), strict=True):
            kept = sorted(was, key=abs)[2:]
            assert [value if value in kept else 0.0 for value in was] == four


@given(zeros=st.integers(0, 96), sparsity=st.integers(1, 9))
def test_weights_that_are_zero_go_first(zeros: int, sparsity: int) -> None:
    weight = torch.arange(1.0, 97.0)
    weight[:zeros] = 0
    weight = weight[torch.randperm(96, generator=torch.Generator().manual_seed(zeros))].view(8, 12)
    pruned = weight.masked_fill(magnitude_mask(weight, MagnitudeConfig(sparsity=sparsity / 10)), 0)
    assert int((pruned == 0).sum()) == max(zeros, round(sparsity / 10 * 96))
