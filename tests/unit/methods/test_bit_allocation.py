"""The allocation against every combination there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.errors import CompressionError
from agentic_compression.methods.bit_allocation import Option, allocate, stored_bytes
from agentic_compression.methods.rtn import RtnConfig, quantize

option = st.builds(
    Option,
    bits=st.sampled_from((2, 3, 4, 8)),
    group_size=st.just(32),
    size_bytes=st.integers(1, 40),
    cost=st.one_of(st.integers(0, 5).map(float), st.floats(0, 1e3)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(option, min_size=1, max_size=4), min_size=1, max_size=5), st.integers(1, 200))
def test_no_combination_within_the_budget_is_better(layers: list[list[Option]], budget: int) -> None:
    fitting = [
        sum(one.cost for one in combination)
        for combination in itertools.product(*layers)
        if sum(one.size_bytes for one in combination) <= budget
    ]
    if not fitting:
        with pytest.raises(CompressionError, match="at least"):
            allocate(layers, budget)
        return
    chosen = allocate(layers, budget)
    assert all(one in layer for one, layer in zip(chosen, layers, strict=True))
    assert sum(one.size_bytes for one in chosen) <= budget
    assert sum(one.cost for one in chosen) == pytest.approx(min(fitting), rel=1e-12, abs=1e-12)


def test_hundreds_of_layers_take_no_time() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = []
    for number in range(224):
        weights = (4096 * 4096, 4096 * 11008 + 4096 * number)[number % 2]
        hurt = float(torch.rand(1, generator=generator)) + 0.1
        layers.append([Option(bits, 64, weights * bits // 8, hurt * 4.0**-bits) for bits in (2, 3, 4, 8)])
    budget = int(3.5 / 8 * sum(layer[-1].size_bytes for layer in layers))
    chosen = allocate(layers, budget)
    assert 0.999 * budget < sum(one.size_bytes for one in chosen) <= budget


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [64, 172, 256])
def test_stored_bytes_are_those_on_disk(bits: int, columns: int) -> None:
    packed = PackedLinear(quantize(torch.randn(20, columns), RtnConfig(bits=bits, group_size=32)))
    tensors = packed.stored_tensors()
    on_disk = sum(tensor.nbytes for name, tensor in tensors.items() if name != "weight_shape")
    assert stored_bytes(20, columns, bits, packed.group_size) == on_disk
