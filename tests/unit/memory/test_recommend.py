"""Recommendations: what did well in similar situations, with the reasons in figures."""

from __future__ import annotations

import math

import pytest

from agentic_compression.memory import recalled_from, recommend
from agentic_compression.memory.recommend import worth
from agentic_compression.pareto import hypervolume, loss_rows, reference_point
from agentic_compression.records import Constraint, Experience, Objectives
from tests.unit.memory.experiences import failed, make_experience, make_situation


def _best(*items: Experience, constraints: tuple[str, ...] = (), limit: int = 5):  # type: ignore[no-untyped-def]
    return recommend(recalled_from(items, make_situation()), [Constraint.parse(text) for text in constraints], limit)


def test_worth_is_what_the_frontier_counts_for_a_baseline_of_full_accuracy() -> None:
    """With a baseline of accuracy 1 the share of the box is the hypervolume of that one point."""
    baseline = Objectives(accuracy=1, latency_ms=20, memory_gb=4, model_size_gb=2, co2_grams=3)
    point = Objectives(accuracy=0.8, latency_ms=10, memory_gb=3, model_size_gb=1, co2_grams=3)
    ratios = {name: getattr(point, name) / getattr(baseline, name) for name in list(Objectives.model_fields)[1:]}
    experience = make_experience(accuracy=0.8, baseline_accuracy=1.0, ratios=ratios)
    expected = hypervolume(loss_rows([point]), reference_point(baseline))
    assert worth(experience) == pytest.approx(expected)


def test_the_better_strategy_comes_first_and_failures_cost() -> None:
    good = [make_experience("a", 1), make_experience("b", 1)]
    worse = [make_experience("a", 2, "nf4", accuracy=0.3), make_experience("b", 2, "nf4", accuracy=0.3)]
    shaky = [make_experience("a", 3, "awq:bits=4"), failed("b", 3, "awq:bits=4")]
    best = _best(*good, *worse, *shaky)
    assert best[0].strategy.label == "rtn:bits=4"
    assert best[0].n == 2
    assert best[0].studies == ("a", "b")
    assert {item.strategy.label for item in best} == {"rtn:bits=4", "nf4", "awq:bits=4"}
    third = next(item for item in best if item.strategy.label == "awq:bits=4")
    assert third.succeeded == pytest.approx(0.5)
    assert third.contradicted == 2
    assert any("1 failure: oom" in reason for reason in third.reasons)


def test_figures_are_means_by_weight() -> None:
    items = [
        make_experience("a", accuracy=0.60, ratios={"model_size_gb": 0.25}),
        make_experience("b", accuracy=0.56, ratios={"model_size_gb": 0.28}),
    ]
    (found,) = _best(*items)
    assert found.accuracy_drop == pytest.approx(0.02)
    assert found.accuracy_drop_spread == pytest.approx(0.02)
    assert found.ratios == {"model_size_gb": pytest.approx(math.sqrt(0.25 * 0.28))}
    assert found.score == pytest.approx(sum(worth(item) for item in items) / 2.5)


def test_little_evidence_scores_lower_than_much_of_the_same() -> None:
    (one,) = _best(make_experience("a"))
    (many,) = _best(*(make_experience(f"s-{number}") for number in range(6)))
    assert one.score < many.score < worth(make_experience())


def test_constraints_told_in_proportions_are_kept() -> None:
    lossy = make_experience("a", 1, "nf4", accuracy=0.5)
    exact = make_experience("a", 2, "rtn:bits=8", accuracy=0.6, ratios={"model_size_gb": 0.9})
    assert [item.strategy.label for item in _best(lossy, exact, constraints=("accuracy_drop<=0.02",))] == ["rtn:bits=8"]
    assert [item.strategy.label for item in _best(lossy, exact, constraints=("size_ratio<=0.5",))] == ["nf4"]
    assert len(_best(lossy, exact, constraints=("latency_ms<=1",))) == 2  # absolute: not known of another model


def test_what_never_worked_or_was_not_measured_is_not_recommended() -> None:
    assert _best(failed("a"), failed("b"), failed("c", 1, "nf4", status="rejected")) == ()
    assert _best() == ()


def test_at_most_so_many() -> None:
    assert len(_best(*(make_experience("a", n, f"rtn:bits={n}") for n in range(2, 9)), limit=3)) == 3
