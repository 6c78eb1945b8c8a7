"""Similarity: symmetric, 1 for itself, in [0, 1]; and the formula's figures by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.memory import Context, context_of, similarity
from agentic_compression.memory.similarity import WEIGHTS
from tests.unit.memory.experiences import make_experience, make_situation

NAMES = st.sampled_from(["", "a", "b", "cuda:0 (x)", "cuda:1 (y)", "cpu"])
SETS = st.frozensets(st.sampled_from(["x", "y", "z"]))
CONTEXTS = st.builds(
    Context,
    model=NAMES,
    family=NAMES,
    architecture=NAMES,
    parameters=st.none() | st.integers(1, 10**14),
    dataset=NAMES,
    tasks=SETS,
    device=NAMES,
    objective=SETS,
)
HERE = Context("d", "llama", "L", 10**9, "gsm8k", frozenset({"gsm8k"}), "cpu", frozenset({"small"}))


@given(CONTEXTS, CONTEXTS)
def test_similarity_is_symmetric_and_between_0_and_1(a: Context, b: Context) -> None:
    assert similarity(a, b) == similarity(b, a)
    assert 0 <= similarity(a, b) <= 1


@given(CONTEXTS)
def test_similarity_is_1_for_itself(a: Context) -> None:
    assert similarity(a, a) == 1
    assert similarity(a, replace(a)) == 1


@given(st.integers(1, 10**12), st.integers(1, 10**12), st.integers(1, 10**12))
def test_the_nearer_size_is_the_more_similar(p: int, q: int, r: int) -> None:
    small, middle, large = sorted((p, q, r))
    near, far = replace(HERE, parameters=middle), replace(HERE, parameters=large)
    own = replace(HERE, parameters=small)
    assert similarity(own, near) >= similarity(own, far) - 1e-12


def test_the_weights_add_up_to_1() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "e"}, 0.90),
        ({"family": "qwen2"}, 0.80),
        ({"architecture": "Q"}, 0.90),
        ({"parameters": 10**10}, 0.75 + 0.25 * 0.36787944117144233),
        ({"tasks": frozenset({"gsm8k", "arc"})}, 0.90),
        ({"tasks": frozenset({"arc"})}, 0.80),
        ({"dataset": "other"}, 1.0),  # the tasks are known, so the name says no more
        ({"device": "cuda:0"}, 0.90),
        ({"objective": frozenset({"small", "fast"})}, 0.975),
        ({"family": ""}, 0.90),  # only one side knows it
    ],
)
def test_one_difference_costs_its_weight(changes: dict[str, object], expected: float) -> None:
    other = Context(**{**HERE.__dict__, **changes})  # type: ignore[arg-type]
    assert similarity(HERE, other) == pytest.approx(expected)


def test_what_neither_side_knows_is_left_out() -> None:
    one, other = Context(family="a", parameters=10), Context(family="b", parameters=10)
    assert similarity(one, other) == pytest.approx(0.25 / 0.45)


def test_two_gpus_are_half_the_same_device() -> None:
    one, other = replace(HERE, device="cuda:0 (A)"), replace(HERE, device="cuda:0 (B)")
    assert similarity(one, other) == pytest.approx(0.95)


def test_an_experience_and_the_situation_it_came_from_are_the_same() -> None:
    assert similarity(context_of(make_experience()), context_of(make_situation())) == 1
    assert similarity(context_of(make_experience()), context_of(make_situation(spec=None))) < 0.75
