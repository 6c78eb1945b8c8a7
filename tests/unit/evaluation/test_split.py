"""The split: stable, seeded, decided by what an item says."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.evaluation.split import LEAST_ITEMS, item_text, on_side, side_of, unsplit_warning

TEXTS = [f"what is {number} plus {number}" for number in range(400)]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=40), st.integers(0, 9), st.floats(0.05, 0.95), st.randoms())
def test_reordering_and_adding_items_moves_none(texts: list[str], seed: int, share: float, draw: random.Random) -> None:
    before = {text: side_of(text, seed, share) for text in texts}
    more = [*texts, *(f"{text} again" for text in texts)]
    draw.shuffle(more)
    after = {text: side_of(text, seed, share) for text in more}
    assert {text: after[text] for text in before} == before


def test_items_that_say_the_same_share_a_side_whatever_their_name() -> None:
    for number in range(50):
        one = {"id": f"a{number}", "question": f"How  MANY are {number}?", "choices": ["x", "y"], "answer": 0}
        two = {"question": f"how many are {number}?", "answer": 0, "choices": ["X", "y"], "id": f"b{number}"}
        assert side_of(item_text(one), 0, 0.5) == side_of(item_text(two), 0, 0.5)


def test_the_sides_part_the_items_in_about_the_share() -> None:
    for share in (0.2, 0.5, 0.8):
        search, report = on_side(TEXTS, "search", 3, share), on_side(TEXTS, "report", 3, share)
        assert sorted(search + report) == list(range(400)) == on_side(TEXTS, "all", 3, share)
        assert abs(len(report) / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5


def test_another_seed_is_another_split() -> None:
    first, second = set(on_side(TEXTS, "report", 0, 0.5)), set(on_side(TEXTS, "report", 1, 0.5))
    assert 60 < len(first & second) < 140  # independent halves share a quarter of the items


def test_a_larger_report_share_only_adds_to_the_report() -> None:
    assert set(on_side(TEXTS, "report", 0, 0.3)) < set(on_side(TEXTS, "report", 0, 0.6))


def test_a_task_too_small_to_split_is_asked_in_full_on_both_sides_and_says_so() -> None:
    few = TEXTS[: LEAST_ITEMS + 2]
    assert on_side(few, "search", 0, 0.5) == on_side(few, "report", 0, 0.5) == list(range(len(few)))
    warning = unsplit_warning("tiny", few, 0, 0.5)
    assert warning is not None
    assert "'tiny' has 10 items" in warning
    assert unsplit_warning("large", TEXTS, 0, 0.5) is None
