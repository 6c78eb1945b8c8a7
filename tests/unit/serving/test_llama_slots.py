"""Slots of llama.cpp give what the sequence gives alone, whatever joins, leaves and lies beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaContext, LlamaModel
from agentic_compression.serving.batching import Portion
from agentic_compression.serving.llama_slots import LlamaSlots, split_cells
from tests.unit.methods.tiny_models import tiny_model
from tests.unit.runtimes.gguf_writing import write_llama

_ROUNDING = 1e-2  # keys and values are float16; logits of another sequence differ by one or more
SLOTS, CONTEXT = 5, 512
BUDGETS = {"streams": SLOTS * CONTEXT, "shared": 1024, "both": CONTEXT + SLOTS * 256}
PLANS = st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(1, 9), st.booleans()), min_size=1, max_size=8)
"""Steps: which slot, how many tokens it runs, and whether it is freed after the step."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaModel]:
    with LlamaModel(write_llama(tiny_model(), tmp_path_factory.mktemp("gguf") / "model.gguf")) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(model: LlamaModel) -> Iterator[LlamaContext]:
    with model.context(ContextOptions(tokens=CONTEXT)) as context:
        yield context


def logits_after(alone: LlamaContext, ids: list[int]) -> Any:
    alone.clear()
    wanted = [False] * (len(ids) - 1) + [True]
    return alone.decode(ids, range(len(ids)), [0] * len(ids), wanted)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BUDGETS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(PLANS, min_size=1, max_size=8), random=st.randoms(use_true_random=False))
def test_any_mixture_of_portions_gives_the_sequences_own_logits(
    model: LlamaModel, alone: LlamaContext, kind: str, steps: list[Any], random: Any
) -> None:
    slots = LlamaSlots(model, SLOTS, BUDGETS[kind], 1)
    held: dict[int, list[int]] = {}
    rooms: dict[int, int] = {}
    for step in steps:
        portions, freed = [], []
        for slot, count, leaves in {plan[0]: plan for plan in step}.values():
            tokens = [random.randrange(258) for _ in range(count)]
            rooms.setdefault(slot, random.choice((100, 300)))
            portions.append(Portion(slot, tokens, len(held.get(slot, [])), random.random() < 0.8, rooms[slot]))
            held.setdefault(slot, []).extend(tokens)
            freed += [slot] * leaves
        rows = slots.run(portions)
        wanted = [portion.slot for portion in portions if portion.wanted]
        assert len(rows) == len(wanted)
        for slot, row in zip(wanted, rows, strict=True):
            np.testing.assert_allclose(row, logits_after(alone, held[slot]), atol=_ROUNDING)
        for slot in freed:
            slots.free(slot)
            del held[slot], rooms[slot]
    for context in list(model._contexts):
        if context is not alone:
            context.close()


def test_cells_are_shared_out_within_the_budget() -> None:
    assert split_cells(16, 16 * 512, 512) == (512, 0)
    assert split_cells(16, 16 * 512, 500) == (512, 0)
    assert split_cells(16, 32_768, 8192) == (1536, 8192)
    assert split_cells(16, 8192, 8192) == (0, 8192)
    assert split_cells(1, 4096, 4096) == (4096, 0)


@given(st.integers(1, 64), st.integers(1, 400), st.integers(1, 200_000))
def test_no_cell_is_lost_and_the_longest_sequence_fits(slots: int, blocks: int, context: int) -> None:
    cells = blocks * 256
    stream, shared = split_cells(slots, cells, context)
    assert slots * stream + shared <= cells
    assert max(stream, shared) >= min(context, cells)
    assert stream % 256 == 0
    assert shared or stream >= context


def test_a_sequence_that_fits_a_stream_costs_nothing_that_is_shared(model: LlamaModel) -> None:
    slots = LlamaSlots(model, SLOTS, BUDGETS["both"], 1)
    assert slots.cells == CONTEXT
    assert slots.cost([256, 100, 257]) == 257
    assert LlamaSlots(model, SLOTS, BUDGETS["streams"], 1).cost([512] * SLOTS) == 0
    assert LlamaSlots(model, SLOTS, BUDGETS["shared"], 1).cost([512, 100]) == 612


def test_long_and_short_sequences_fill_their_caches_to_the_end(model: LlamaModel, alone: LlamaContext) -> None:
    """The longest of the shared cache beside a full stream in every other slot."""
    slots = LlamaSlots(model, SLOTS, BUDGETS["both"], 1)
    lengths = {0: CONTEXT, **dict.fromkeys(range(1, SLOTS), 256)}
    ids = {slot: [(7 * slot + 3 * place) % 258 for place in range(length)] for slot, length in lengths.items()}
    rows = slots.run([Portion(slot, tokens, 0, True, len(tokens)) for slot, tokens in ids.items()])
    for (slot, tokens), row in zip(ids.items(), rows, strict=True):
        np.testing.assert_allclose(row, logits_after(alone, tokens), atol=_ROUNDING, err_msg=str(slot))


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    from agentic_compression.errors import ModelError
    from agentic_compression.serving.llama_slots import open_llama_model

    with pytest.raises(ModelError, match=r"must hold a \.gguf file, got none"):
        open_llama_model(tmp_path, "cpu")
