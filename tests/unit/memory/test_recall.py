"""Recall: the most similar, and what contradicts lowers the weight."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.memory import context_of, measurement, recalled_from, similarity
from agentic_compression.memory.recall import contradicts
from agentic_compression.records import Experience, Recalled
from tests.unit.memory.experiences import experiences, failed, make_experience, make_situation

TEN_TIMES_AS_LARGE = (0.70 + 0.25 / math.e) / 0.95  # all parts but the wish, which neither side has


def _weights(*items: Experience) -> dict[tuple[str, int], float]:
    recalled = recalled_from(items, make_situation())
    return {(entry.experience.study, entry.experience.episode): entry.weight for entry in recalled}


@given(st.lists(experiences(), max_size=12), st.integers(1, 6), st.randoms())
def test_recall_is_ordered_bounded_and_independent_of_the_input_order(items, limit, random) -> None:  # type: ignore[no-untyped-def]
    items = list({measurement(item): item for item in items}.values())
    situation = make_situation()
    recalled = recalled_from(items, situation, limit)
    assert len(recalled) <= limit
    assert all(one.weight >= other.weight for one, other in pairwise(recalled))
    for entry in recalled:
        assert 0 <= entry.weight <= entry.similarity
        assert entry.similarity == similarity(context_of(situation), context_of(entry.experience))
    shuffled = list(items)
    random.shuffle(shuffled)
    assert recalled_from(shuffled, situation, limit) == recalled


def test_without_others_the_weight_is_the_similarity() -> None:
    (entry,) = recalled_from([make_experience(parameters=10**10)], make_situation())
    assert entry.weight == entry.similarity == pytest.approx(TEN_TIMES_AS_LARGE)


@pytest.mark.parametrize("others", [1, 2, 5])
def test_contradictions_lower_the_weight_as_the_formula_says(others: int) -> None:
    good = [make_experience(f"good-{number}") for number in range(others)]
    poisoned = make_experience("poisoned", accuracy=0.1)
    weights = _weights(*good, poisoned)
    assert weights["poisoned", 1] == pytest.approx(1 / (1 + others))
    assert weights["good-0", 1] == pytest.approx(others / (others + 1))


def test_a_vote_counts_as_much_as_its_similarity() -> None:
    near, far = make_experience("near"), failed("far", parameters=10**10)
    weights = _weights(near, far)
    assert weights["near", 1] == pytest.approx(1 / (1 + TEN_TIMES_AS_LARGE))
    assert weights["far", 1] == pytest.approx(TEN_TIMES_AS_LARGE / 2)


def test_more_agreement_raises_and_more_contradiction_lowers() -> None:
    base = [make_experience("own"), failed("against-0")]
    before = _weights(*base)["own", 1]
    assert _weights(*base, make_experience("for"))["own", 1] > before
    assert _weights(*base, failed("against-1"))["own", 1] < before


def test_a_study_has_one_vote_however_often_it_tried() -> None:
    own = make_experience("own")
    once = _weights(own, failed("other"))["own", 1]
    often = _weights(own, *(failed("other", episode) for episode in range(1, 9)))["own", 1]
    assert often == once == pytest.approx(0.5)
    flood = [failed("one-study", episode) for episode in range(500)]
    voices = [make_experience(f"s-{number}", at="2020-01-01T00:00:00+00:00") for number in range(5)]
    assert _weights(own, *flood, *voices)["own", 1] == pytest.approx(6 / 7)


def test_other_strategies_other_situations_and_the_same_study_do_not_vote() -> None:
    own = make_experience("own")
    for silent in (
        failed("other", strategy="rtn:bits=8"),
        failed("own", 2),
        failed("other", family="x", architecture="x", digest="x", parameters=1000),
        failed("other", status="rejected"),
    ):
        assert _weights(own, silent)["own", 1] == 1


def test_own_measurements_are_left_out() -> None:
    own, other = make_experience("own"), make_experience("own", at="2025-01-01T00:00:00+00:00")
    (entry,) = recalled_from([own, other], make_situation(), leave_out={measurement(own)})
    assert entry.experience == other


def test_what_has_nothing_in_common_is_not_recalled() -> None:
    foreign = make_experience(
        family="x", architecture="x", digest="x", parameters=1, dataset="x", tasks=("x",), device="cuda:0"
    )
    assert recalled_from([foreign], make_situation()) == ()


def test_of_equals_the_newest_comes_first() -> None:
    items = [make_experience(episode=number, at=f"2026-11-0{number}T00:00:00+00:00") for number in range(1, 6)]
    found: tuple[Recalled, ...] = recalled_from(items, make_situation(), limit=2)
    assert [entry.experience.episode for entry in found] == [5, 4]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"accuracy": 0.55}, False),  # 0.03 apart
        ({"accuracy": 0.40}, True),
        ({"accuracy": 0.40, "items": 30}, False),  # so few items cannot tell
        ({"accuracy": 0.30, "items": 1}, True),  # nor can they excuse everything
        ({"ratios": {"model_size_gb": 0.36}}, False),
        ({"ratios": {"model_size_gb": 0.38}}, True),
        ({"ratios": {"latency_ms": 0.9}}, False),
        ({"ratios": {"latency_ms": 1.1}}, True),
        ({"ratios": {"latency_ms": 1.1}, "device": "cuda:0"}, False),
        ({"accuracy": None, "ratios": {}}, None),
        ({"status": "failed", "accuracy": None, "ratios": {}}, True),
        ({"status": "rejected", "accuracy": None, "ratios": {}}, None),
    ],
)
def test_what_contradicts(changes: dict[str, object], expected: bool | None) -> None:
    one, other = make_experience("one"), make_experience("two", **changes)
    assert contradicts(one, other) is expected
    assert contradicts(other, one) is expected
