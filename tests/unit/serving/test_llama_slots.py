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
from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.llama_slots import LlamaSlots
from agentic_compression.serving.loading import cache_cells
from tests.unit.methods.tiny_models import tiny_model
from tests.unit.runtimes.gguf_writing import write_llama

_ROUNDING = 5e-2  # keys and values are float16; logits of another sequence differ by one or more
SLOTS, CONTEXT = 5, 512
BUDGETS = {"streams": SLOTS * CONTEXT, "shared": 1024}
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
    for step in steps:
        portions, freed = [], []
        for slot, count, leaves in {plan[0]: plan for plan in step}.values():
            tokens = [random.randrange(258) for _ in range(count)]
            portions.append(Portion(slot, tokens, len(held.get(slot, [])), random.random() < 0.8))
            held.setdefault(slot, []).extend(tokens)
            freed += [slot] * leaves
        rows = slots.run(portions)
        wanted = [portion.slot for portion in portions if portion.wanted]
        assert rows.shape == (len(wanted), 258)
        for slot, row in zip(wanted, rows, strict=True):
            np.testing.assert_allclose(row, logits_after(alone, held[slot]), atol=_ROUNDING)
        for slot in freed:
            slots.free(slot)
            del held[slot]
    for context in list(model._contexts):
        if context is not alone:
            context.close()


def test_streams_take_nothing_from_each_other(model: LlamaModel) -> None:
    streams, shared = (LlamaSlots(model, SLOTS, cells, 1) for cells in BUDGETS.values())
    assert (streams.has_streams, shared.has_streams) == (True, False)
    assert streams.cost([CONTEXT] * SLOTS) == 0
    assert shared.cost([512, 100]) == 612


def test_every_stream_holds_a_whole_context(model: LlamaModel, alone: LlamaContext) -> None:
    slots = LlamaSlots(model, SLOTS, BUDGETS["streams"], 1)
    ids = {slot: [(7 * slot + 3 * place) % 258 for place in range(CONTEXT)] for slot in range(SLOTS)}
    rows = slots.run([Portion(slot, tokens, 0, True) for slot, tokens in ids.items()])
    for (slot, tokens), row in zip(ids.items(), rows, strict=True):
        np.testing.assert_allclose(row, logits_after(alone, tokens), atol=_ROUNDING, err_msg=str(slot))


def test_one_token_of_every_stream_is_one_pass(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp splits a batch where streams do not follow each other: they are kept together and in order."""
    slots = LlamaSlots(model, SLOTS, BUDGETS["streams"], 1)
    slots.run([Portion(slot, (1, 2, slot), 0, False) for slot in (4, 2, 0, 1, 3)])
    slots.free(2)
    slots.free(4)
    owners: list[list[int]] = []
    decode = slots._context.decode

    def spied(tokens: Any, positions: Any, sequences: Any, wanted: Any) -> Any:
        owners.append(list(sequences))
        return decode(tokens, positions, sequences, wanted)

    monkeypatch.setattr(slots._context, "decode", spied)
    slots.run([Portion(slot, (5,), 3, True) for slot in (3, 0, 1)])
    assert owners == [[0, 1, 2]]


def test_a_slot_that_never_ran_can_be_freed(model: LlamaModel) -> None:
    for cells in BUDGETS.values():
        LlamaSlots(model, SLOTS, cells, 1).free(3)


@pytest.mark.parametrize(
    ("slots", "tokens", "context", "cells"),
    [(16, 0, 512, 8192), (16, 0, 500, 8192), (16, 0, 8192, 32_768), (16, 0, 131_072, 131_072), (2, 1000, 512, 1024)],
)
def test_the_cache_holds_a_context_and_has_a_limit(slots: int, tokens: int, context: int, cells: int) -> None:
    assert cache_cells(EngineOptions(slots=slots, cache_tokens=tokens), context) == cells


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    from agentic_compression.errors import ModelError
    from agentic_compression.serving.llama_slots import open_llama_model

    with pytest.raises(ModelError, match=r"must hold a \.gguf file, got none"):
        open_llama_model(tmp_path, "cpu")
