"""Walking a model's blocks: statistics against numpy, block inputs against hooks on the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext
from agentic_compression.methods import layerwise as module
from agentic_compression.methods.layerwise import Gram, walk_blocks
from tests.unit.methods.tiny_models import tiny_model


def windows(count: int = 5, tokens: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = [torch.randint(2, 250, (1, tokens), generator=generator) for _ in range(count)]
    return [*made, torch.randint(2, 250, (1, 7), generator=generator)]


def inputs_by_hook(model: Any, text: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What every linear sees when the whole model runs on one window after the other."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1]))
        )
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    with torch.no_grad():
        for window in text:
            model(input_ids=window, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=4), width=st.integers(1, 12), matrix=st.booleans())
@settings(deadline=None, max_examples=30)
def test_statistics_are_means_over_all_rows(counts: list[int], width: int, matrix: bool) -> None:
    parts = [torch.randn(count, width, generator=torch.Generator().manual_seed(count)) for count in counts]
    gram = Gram(width, "cpu", matrix=matrix)
    for part in parts:
        gram.add(part[None])
    rows = torch.cat(parts).double().numpy()
    assert gram.count == len(rows)
    total = max(1, len(rows))
    np.testing.assert_allclose(gram.mean_absolute, np.abs(rows).sum(axis=0) / total, atol=1e-5)
    np.testing.assert_allclose(gram.diagonal, (rows**2).sum(axis=0) / total, atol=1e-5)
    if matrix:
        np.testing.assert_allclose(gram.matrix, rows.T @ rows / total, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="keeps no matrices"):
            _ = gram.matrix


@pytest.mark.parametrize("kind", ["llama", "tied", "biases", "odd"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_linear_gets_the_statistics_of_its_inputs(kind: str, batch_size: int) -> None:
    model = tiny_model(kind)
    expected = inputs_by_hook(model, windows())
    found = {}
    for layers in walk_blocks(model, CompressionContext(calibration=windows(), batch_size=batch_size), "test"):
        found.update({name: (gram.matrix.clone(), gram.count) for name, _, gram in layers})
    assert found.keys() == {name for name in expected if "layers" in name}
    for name, (matrix, count) in found.items():
        rows = expected[name].double()
        assert count == len(rows)
        torch.testing.assert_close(matrix.double(), rows.T @ rows / len(rows), atol=1e-4, rtol=1e-4)


def test_inputs_come_from_the_changed_blocks_before() -> None:
    model = tiny_model()
    text = windows()
    last: dict[str, torch.Tensor] = {}
    for layers in walk_blocks(model, CompressionContext(calibration=text), "test"):
        for _, linear, _ in layers:
            linear.weight.data.mul_(0.5)
        last = {name: gram.matrix.clone() for name, _, gram in layers}
    for name, matrix in last.items():
        if "q_proj" in name:  # unchanged until all inputs of its block were seen
            rows = inputs_by_hook(model, text)[name].double()
            torch.testing.assert_close(matrix.double(), rows.T @ rows / len(rows), atol=1e-4, rtol=1e-4)


def test_linears_with_the_same_input_share_statistics() -> None:
    layers = next(iter(walk_blocks(tiny_model(), CompressionContext(calibration=windows()), "test")))
    number = {name.rpartition(".")[2]: id(gram) for name, _, gram in layers}
    assert number["q_proj"] == number["k_proj"] == number["v_proj"]
    assert number["gate_proj"] == number["up_proj"]
    assert len(set(number.values())) == 4


class _TwoPaths(nn.Module):
    """Sends both linears the same tensor, until a batch with another number of tokens comes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.never = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.first(x) + self.second(x if x.shape[1] == 3 else x * 2)
        return y


def test_sharing_that_ends_in_a_later_batch_is_undone() -> None:
    block = _TwoPaths()
    text = [torch.ones(1, 3, 4), torch.ones(1, 2, 4)]
    nothing: list[Any] = [((), {}), ((), {})]
    linears = [block.first, block.second, block.never]
    with torch.no_grad():
        first, second, never = module._collect(block, linears, text, nothing, matrices=True)
    assert first is not second
    assert float(first.diagonal[0]) == pytest.approx(1.0)
    assert float(second.diagonal[0]) == pytest.approx((3 * 1 + 2 * 4) / 5)
    assert never.count == 0


def test_neither_blocks_nor_head_run_to_find_the_first_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    ran: list[str] = []
    model.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    model.model.norm.register_forward_hook(lambda *_: ran.append("norm"))
    for name in ("self_attn", "mlp"):
        getattr(model.model.layers[0], name).register_forward_hook(lambda *_: ran.append("block"))
    hidden, arguments = module._first_inputs(model, model.model.layers, CompressionContext(calibration=windows()))
    assert not ran
    assert [tuple(x.shape) for x in hidden] == [(5, 24, 64), (1, 7, 64)]
    assert [len(by_block) for by_block in arguments] == [2, 2]
    assert "forward" not in vars(model.model.layers[0])


def test_batches_are_limited_in_windows_and_tokens() -> None:
    text = [torch.zeros(1, 512, dtype=torch.int64)] * 5
    assert [len(batch) for batch in module._batches(text, 16)] == [4, 1]
    assert [len(batch) for batch in module._batches(text, 8)] == [2, 2, 1]
    assert [len(batch) for batch in module._batches([torch.zeros(1, 9)] * 5, 2)] == [2, 2, 1]


def test_missing_text_blocks_and_bad_activations_are_refused() -> None:
    with pytest.raises(CompressionError, match="needs calibration text"):
        next(walk_blocks(tiny_model(), CompressionContext(), "test"))
    model = tiny_model()
    model.config.num_hidden_layers = 7
    with pytest.raises(CompressionError, match="no list of 7 decoder blocks"):
        next(walk_blocks(model, CompressionContext(calibration=windows()), "test"))
    model = tiny_model()
    model.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(
        CompressionError, match=r"NaN or infinite activations at the input of model\.layers\.1\.self_at"
    ):
        list(walk_blocks(model, CompressionContext(calibration=windows()), "test"))
