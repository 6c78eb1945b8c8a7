"""Which answers stand beside each other."""

from __future__ import annotations

from typing import Any

import pytest

from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.pairing import pair_scores
from agentic_compression.records import BenchmarkScore, Estimate


def score(**values: Any) -> BenchmarkScore:
    estimate = Estimate(value=0.5, low=0.4, high=0.6, n=4)
    return BenchmarkScore(**{"task": "t", "metric": "acc", "score": estimate, "harness": "test", **values})


def test_same_items_are_paired_by_position() -> None:
    pair = pair_scores(score(items_digest="a", outcomes=(1, 1, 0, 0)), score(items_digest="a", outcomes=(0, 1, 1, 0)))
    assert pair.units.differences.tolist() == [-1, 0, 1, 0]
    assert pair.flips is not None
    assert (pair.flips.right_to_wrong, pair.flips.wrong_to_right, pair.flips.share) == (1, 1, 0.5)
    assert pair.warnings == ()


def test_other_samples_are_paired_by_name_on_what_they_share() -> None:
    first = score(items_digest="a", items=("x", "y", "z", "y"), outcomes=(1, 0, 1, 1))
    second = score(items_digest="b", items=("y", "w", "z", "y"), outcomes=(1, 1, 0, 0))
    pair = pair_scores(first, second)
    assert pair.units.differences.tolist() == [1, -1, -1]  # y, z, and the second y
    assert (pair.baseline, pair.candidate) == pytest.approx((2 / 3, 1 / 3))
    assert "3 in common" in pair.warnings[0]


def test_the_same_items_in_another_order_pair_without_a_word() -> None:
    first = score(items_digest="a", items=("x", "y"), outcomes=(1, 0))
    pair = pair_scores(first, score(items_digest="b", items=("y", "x"), outcomes=(0, 1)))
    assert pair.units.differences.tolist() == [0, 0]
    assert pair.warnings == ()


def test_tokens_are_gathered_into_their_documents() -> None:
    text = {"metric": "next_token_top1", "items_digest": "a"}
    pair = pair_scores(
        score(outcomes=(1, 1, 0, 0, 1), groups=(2, 3), **text), score(outcomes=(0, 1, 1, 1, 1), groups=(2, 3), **text)
    )
    assert pair.units.differences.tolist() == [-1, 2]
    assert pair.units.sizes.tolist() == [2, 3]
    assert pair.flips is None
    assert (pair.baseline, pair.candidate) == (0.6, 0.8)
    older = pair_scores(score(outcomes=(1, 0), **text), score(outcomes=(1, 1), **text))
    assert "independent" in older.warnings[0]


def test_graded_answers_have_no_flips() -> None:
    pair = pair_scores(score(items_digest="a", values=(0.5, 1.0)), score(items_digest="a", outcomes=(1, 0)))
    assert pair.units.differences.tolist() == [0.5, -1.0]
    assert pair.flips is None


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"items_digest": "a", "outcomes": (1,)}, {"items_digest": "b", "outcomes": (1,)}, "same items"),
        (
            {"items_digest": "a", "outcomes": (1,), "items": ("x",)},
            {"items_digest": "b", "outcomes": (1,), "items": ("y",)},
            "none in common",
        ),
        ({"items_digest": "a"}, {"items_digest": "a"}, "only the mean"),
        (
            {"items_digest": "a", "outcomes": (1, 1, 0), "groups": (1, 2)},
            {"items_digest": "a", "outcomes": (1, 1, 0), "groups": (2, 1)},
            "tokenizers",
        ),
        (
            {"items_digest": "a", "outcomes": (1, 1, 0), "groups": (1, 1)},
            {"items_digest": "a", "outcomes": (1, 1, 0), "groups": (1, 1)},
            "measure it again",
        ),
        (
            {"items_digest": "a", "values": (0.5, float("nan"))},
            {"items_digest": "a", "values": (0.5, 0.5)},
            "finite",
        ),
    ],
)
def test_what_cannot_be_paired_says_why(first: dict[str, Any], second: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        pair_scores(score(**first), score(**second))
