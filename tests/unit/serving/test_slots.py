"""Batched slots give what the model gives alone, whatever joins and leaves meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.serving.batching import Portion
from agentic_compression.serving.slots import BatchedSlots, SeparateSlots, cache_shape, open_slots
from tests.unit.methods.tiny_models import tiny_model

MODEL = tiny_model()
PLANS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9), st.booleans()), min_size=1, max_size=8)
"""Steps: which slot, how many tokens it runs, and whether it is freed after the step."""


def reference(model: Any, ids: list[int]) -> Any:
    """Logits after the last token, from one pass without a cache."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float().numpy()


@settings(max_examples=12, deadline=None)
@given(st.lists(PLANS, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_mixture_of_portions_gives_the_models_own_logits(steps: list[Any], random: Any) -> None:
    slots = BatchedSlots(MODEL, 5, 1000)
    held: dict[int, list[int]] = {}
    for step in steps:
        portions, freed = [], set()
        for slot, count, leaves in {plan[0]: plan for plan in step}.values():
            tokens = [random.randrange(258) for _ in range(count)]
            portions.append(Portion(slot, tokens, len(held.get(slot, [])), True))
            held.setdefault(slot, []).extend(tokens)
            if leaves:
                freed.add(slot)
        for portion, row in zip(portions, slots.run(portions), strict=True):
            np.testing.assert_allclose(row, reference(MODEL, held[portion.slot]), atol=2e-4)
        for slot in freed:
            slots.free(slot)
            del held[slot]


@pytest.mark.parametrize("kind", ["llama", "tied", "biases"])
def test_open_slots_batches_plain_decoders(kind: str) -> None:
    assert isinstance(open_slots(tiny_model(kind), 4, 512), BatchedSlots)


def test_open_slots_runs_a_model_with_another_memory_one_by_one() -> None:
    """A state-space model caches no keys: its rows cannot lie in one table of positions."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2)
    model = MambaForCausalLM(config).eval()
    assert isinstance(open_slots(model, 4, 512), SeparateSlots)


def test_open_slots_sees_a_mask_that_is_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    forward = model.forward

    def deaf(attention_mask: Any = None, **others: Any) -> Any:
        return forward(attention_mask=None if attention_mask is None else torch.zeros_like(attention_mask), **others)

    monkeypatch.setattr(model, "forward", deaf)
    assert isinstance(open_slots(model, 4, 512), SeparateSlots)


def test_unwanted_logits_are_not_given() -> None:
    slots = BatchedSlots(MODEL, 2, 100)
    assert len(slots.run([Portion(0, (1, 2), 0, False)])) == 0
    rows = slots.run([Portion(0, (3,), 2, True), Portion(1, (4, 5), 0, False)])
    np.testing.assert_allclose(rows[0], reference(MODEL, [1, 2, 3]), atol=2e-4)


@pytest.mark.parametrize(
    "changes", [{"sliding_window": 8}, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}]
)
def test_what_a_short_trial_cannot_show_is_run_one_by_one(changes: dict[str, Any]) -> None:
    model = tiny_model("llama")
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert isinstance(open_slots(model, 4, 256), SeparateSlots)


def test_what_is_not_a_number_stays_with_its_request() -> None:
    """A request that broke leaves nothing behind in its row, which another request's row is moved into."""
    model = tiny_model("llama")
    slots, alone = BatchedSlots(model, 4, 256), SeparateSlots(model, 4, 256)
    slots.run([Portion(0, (1, 2, 3, 4, 5, 6), 0, True), Portion(1, (4, 3, 2, 1), 0, True)])
    with torch.inference_mode():
        for layer in slots._cache.layers:
            layer.keys[0, :6] = float("nan")
            layer.values[0, :6] = float("nan")
    slots.free(0)
    steps = [
        [Portion(2, (7, 8, 9, 10, 11, 12, 13), 0, True)],
        [Portion(1, (5,), 4, True), Portion(2, (14,), 7, True)],  # one pass: the longer row makes the shorter one wide
    ]
    alone.run([Portion(1, (4, 3, 2, 1), 0, True)])
    for step in steps:
        found, wanted = slots.run(step), alone.run(step)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@given(st.integers(1, 40), st.integers(1, 3000), st.integers(0, 40), st.integers(0, 3000), st.integers(0, 40_000))
def test_a_cache_is_large_enough_and_never_larger_than_allowed(
    rows: int, width: int, held_rows: int, held_width: int, spare: int
) -> None:
    cells = max(rows * width, held_rows * held_width) + spare
    tall, wide = cache_shape((rows, width), (held_rows, held_width), 40, cells)
    assert tall >= rows
    assert wide >= width
    assert tall * wide <= cells


def test_memory_is_what_the_budget_says_when_short_requests_are_followed_by_a_long_one() -> None:
    """Eight rows of a few tokens and then one of many: neither dimension's past may multiply the other's present."""
    slots = BatchedSlots(MODEL, 8, 512)
    slots.run([Portion(slot, (1, 2, 3), 0, True) for slot in range(8)])
    assert slots.allocated <= 512
    for slot in range(1, 8):
        slots.free(slot)
    longer = tuple(value % 250 for value in range(400))
    np.testing.assert_allclose(
        slots.run([Portion(0, longer, 3, True)])[0], reference(MODEL, [1, 2, 3, *longer]), atol=2e-4
    )
    assert 403 <= slots.allocated <= 512
    slots.free(0)
    rows = slots.run([Portion(slot, (4, 5, slot), 0, True) for slot in range(8)])
    np.testing.assert_allclose(rows[7], reference(MODEL, [4, 5, 7]), atol=2e-4)
    assert slots.allocated <= 512
    assert slots.cost([3] * 7 + [50]) == 400


def test_padding_near_the_end_of_the_context_needs_no_position_behind_it() -> None:
    """Learned positions end with the context; the shorter portion of a pass is padded beyond it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=258, n_positions=32, n_embd=32, n_layer=2, n_head=4)).eval()
    slots = BatchedSlots(model, 2, 64)
    long, short = [index * 7 % 258 for index in range(32)], [3, 1, 4]
    slots.run([Portion(0, long[:30], 0, False)])
    rows = slots.run([Portion(0, long[30:], 30, True), Portion(1, short, 0, True)])
    for row, ids in zip(rows, (long, short), strict=True):
        np.testing.assert_allclose(row, reference(model, ids), atol=2e-4)
