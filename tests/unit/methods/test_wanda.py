"""Wanda against its formula in float64 with plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.methods import CompressionContext
from agentic_compression.methods.linear_layers import target_linears
from agentic_compression.methods.wanda import WandaConfig, apply, wanda_mask
from tests.unit.methods.tiny_models import random_windows, tiny_model


def reference(weight: list[list[float]], x: list[list[float]], sparsity: float, group: int) -> list[list[bool]]:
    """True where ``|W_ij| · ‖X_j‖₂`` is among the lowest of its row, or of its four."""
    norms = [math.sqrt(math.fsum(row[column] ** 2 for row in x)) for column in range(len(x[0]))]
    masks = []
    for row in weight:
        scores = [abs(value) * norm for value, norm in zip(row, norms, strict=True)]
        mask = [False] * len(row)
        for start in range(0, len(row), group):
            places = range(start, start + group)
            for place in sorted(places, key=lambda place: (scores[place], place))[: round(sparsity * group)]:
                mask[place] = True
        masks.append(mask)
    return masks


def inputs(columns: int, rows: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = torch.rand(columns, generator=generator, dtype=torch.float64) * 3 + 0.1
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("sparsity", "pattern"), [(0.1, "unstructured"), (0.5, "unstructured"), (0.7, "2:4")])
def test_mask_is_that_of_the_formula(sparsity: float, pattern: str, dtype: torch.dtype) -> None:
    weight = torch.randn(12, 60, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = inputs(60)
    mask = wanda_mask(weight, x.square().mean(dim=0), WandaConfig(sparsity=sparsity, pattern=pattern))
    of = (0.5, 4) if pattern == "2:4" else (sparsity, 60)
    assert mask.tolist() == reference(weight.double().tolist(), x.tolist(), *of)


def test_rows_are_scored_alike_whether_in_one_piece_or_many(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    whole = wanda_mask(weight, torch.ones(16), WandaConfig())
    monkeypatch.setattr("agentic_compression.methods.wanda._SCORED_AT_ONCE", 100)
    assert torch.equal(wanda_mask(weight, torch.ones(16), WandaConfig()), whole)


@given(
    sparsity=st.integers(1, 9),
    dead=st.sets(st.integers(0, 19)),
    values=st.lists(st.integers(-2, 2), min_size=60, max_size=60),
)
def test_every_row_has_the_exact_count_and_dead_inputs_go_first(
    sparsity: int, dead: set[int], values: list[int]
) -> None:
    weight = torch.tensor(values, dtype=torch.float32).view(3, 20)
    squares = torch.tensor([0.0 if column in dead else 1.0 + column for column in range(20)])
    count = round(sparsity / 10 * 20)
    pruned = wanda_mask(weight, squares, WandaConfig(sparsity=sparsity / 10))
    assert pruned.sum(dim=1).tolist() == [count] * 3
    for row, mask in zip(weight.tolist(), pruned.tolist(), strict=True):
        worthless = [column for column in range(20) if column in dead or row[column] == 0]
        chosen = [column for column in worthless if mask[column]]
        assert len(chosen) == min(count, len(worthless))  # nothing that counts is pruned before them


def test_kept_weights_are_unchanged_and_blocks_see_the_pruned_ones_before() -> None:
    before = {name: linear.weight.detach().clone() for name, linear in target_linears(tiny_model("odd"))}
    model = apply(tiny_model("odd"), WandaConfig(sparsity=0.4), CompressionContext(calibration=random_windows())).model
    seen: dict[str, torch.Tensor] = {}
    for name, linear in target_linears(model):
        zeros = (linear.weight == 0).sum(dim=1)
        assert zeros.unique().tolist() == [round(0.4 * linear.in_features)]
        assert torch.equal(linear.weight, before[name].masked_fill(linear.weight == 0, 0))
        linear.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].detach().double().square().sum(dim=(0, 1)))
        )
    model(input_ids=torch.cat(random_windows()))
    # Inputs of block 1's first linears come from the pruned block 0, so they can be seen again in the pruned model.
    for part in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.1.self_attn.{part}"
        scores = before[name].double().abs() * seen[name].sqrt()
        zero = model.get_submodule(name).weight == 0
        largest_pruned = torch.where(zero, scores, 0).amax(dim=1)
        assert bool((largest_pruned <= torch.where(zero, math.inf, scores).amin(dim=1) * (1 + 1e-5)).all())
