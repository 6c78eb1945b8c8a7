"""Calibration, usage and gains, against figures computed by hand or by another way."""

from __future__ import annotations

import numpy as np
import pytest

from agentic_compression.frontier import hypervolume_by_episode
from agentic_compression.planning.llm.note import planner_note
from agentic_compression.planning.llm.progress import hypervolume_alone, hypervolume_gains, ratios, search_frontier
from agentic_compression.planning.llm.review import (
    LANGUAGE_MODEL,
    SEARCH,
    expectation_errors,
    planner_usage,
    source_summaries,
)
from agentic_compression.records import BASELINE, EpisodeRecord, Expected, Objectives, PlannerCall, Strategy
from tests.unit.planning.llm_studies import history
from tests.unit.planning.spaces import record

CALL = PlannerCall(model="m", prompt_version="1", prompt_tokens=100, completion_tokens=10, cost_usd=0.5)


def _with(number: int, objectives: Objectives | None, source: str = "hybrid:llm", **changes: object) -> EpisodeRecord:
    made = record(number, Strategy.parse(f"rtn:bits=4,group_size={number}"))
    return made.model_copy(update={"objectives": objectives, "source": source} | changes)


def _objectives(accuracy: float, cost: float) -> Objectives:
    return Objectives(accuracy=accuracy, latency_ms=cost, memory_gb=cost, model_size_gb=cost, co2_grams=cost)


BASE = record(0, BASELINE).model_copy(update={"objectives": _objectives(0.8, 1.0)})


def test_errors_are_signed_absolute_and_covered_by_maker_and_objective() -> None:
    def episode(number: int, accuracy: float, expected: Expected, **changes: object) -> EpisodeRecord:
        return _with(number, _objectives(accuracy, 0.5), expected=expected).model_copy(update=changes)

    records = [
        BASE,
        episode(1, 0.5, {"accuracy": (0.7, 0.6, 0.8)}, calls=(CALL,)),  # +0.2, outside
        episode(2, 0.6, {"accuracy": (0.5, 0.4, 0.7)}, calls=(CALL,)),  # -0.1, inside
        episode(3, 0.6, {"accuracy": (0.6, 0.6, 0.6), "model_size_gb": (1.0, 0.4, 1.1)}),  # the search's own
        episode(4, 0.6, {"accuracy": (0.0, 0.0, 0.0)}, calls=(CALL,), fallback="refused"),  # the search's too
        episode(5, 0.6, {"accuracy": (9.0, 9.0, 9.0)}, status="failed", objectives=None),
        episode(6, 0.6, {"flavour": (1.0, 1.0, 1.0)}),
    ]
    errors = {(error.maker, error.objective): error for error in expectation_errors(records)}
    assert set(errors) == {(LANGUAGE_MODEL, "accuracy"), (SEARCH, "accuracy"), (SEARCH, "model_size_gb")}
    model = errors[LANGUAGE_MODEL, "accuracy"]
    assert model.episodes == 2
    assert model.mean_error == pytest.approx(0.05)
    assert model.mean_absolute_error == pytest.approx(0.15)
    assert model.within == 0.5
    assert errors[SEARCH, "accuracy"].mean_error == pytest.approx(-0.3)
    assert errors[SEARCH, "model_size_gb"].mean_error == pytest.approx(0.5)
    assert expectation_errors([]) == ()


def test_gains_add_up_to_the_hypervolume_and_failures_gain_nothing() -> None:
    records = [*history(), record(90, Strategy.parse("rtn:bits=2"), "failed")]
    gains = hypervolume_gains(records[::-1])
    assert gains[90] == 0.0
    assert set(gains) == {item.episode for item in records} - {0}
    by_frontier = hypervolume_by_episode(records)  # over epsilon boxes, which are exact without noise
    assert sum(gains.values()) == pytest.approx(by_frontier[-1] - by_frontier[0], abs=1e-9)
    assert hypervolume_gains(records[1:]) == {}


def test_the_gain_of_one_episode_is_the_box_it_adds() -> None:
    records = [BASE, _with(1, _objectives(0.8, 0.5))]
    side = 2.0  # of the reference box, in units of the baseline's cost
    volume = 0.8 * ((side - 0.5) / side) ** 4 - 0.8 * ((side - 1) / side) ** 4
    assert hypervolume_gains(records)[1] == pytest.approx(volume)


def _staircase(points: list[tuple[float, float]]) -> float:
    """Area under accuracy and the fourth power of the costs' side, all four costs being one."""
    area, tallest = 0.0, 0.0
    corners = sorted(((accuracy, ((2 - cost) / 2) ** 4) for accuracy, cost in points), reverse=True)
    for accuracy, side in corners:
        area += accuracy * max(0.0, side - tallest)
        tallest = max(tallest, side)
    return area


def test_what_a_member_dominates_alone_is_what_the_frontier_loses_without_it() -> None:
    draw = np.random.default_rng(7)
    points = {number: (float(a), float(c)) for number, (a, c) in enumerate(draw.random((9, 2)), start=1)}
    records = [BASE, *(_with(number, _objectives(*point)) for number, point in points.items())]
    whole, alone = hypervolume_alone(records)
    assert BASE.objectives is not None
    members = {
        item.episode: points.get(item.episode, (BASE.objectives.accuracy, 1.0)) for item in search_frontier(records)
    }
    assert len(members) > 2
    assert whole == pytest.approx(_staircase(list(members.values())))
    for number in members:
        left = [point for other, point in members.items() if other != number]
        assert alone[number] == pytest.approx(whole - _staircase(left))
    assert hypervolume_alone(records[1:]) == (0.0, {})


def test_the_frontier_that_is_told_is_the_non_dominated_set() -> None:
    draw = np.random.default_rng(5)
    points = [_objectives(float(a), float(c)) for a, c in draw.integers(1, 6, (40, 2)) / 6]
    records = [BASE, *(_with(number, point) for number, point in enumerate(points, start=1))]
    rows = [(-r.objectives.accuracy, r.objectives.latency_ms) for r in records if r.objectives]
    slow = {
        records[i].episode
        for i, row in enumerate(rows)
        if not any(all(a <= b for a, b in zip(o, row, strict=True)) and o != row for o in rows) and row not in rows[:i]
    }
    assert {item.episode for item in search_frontier(records)} == slow


def test_ratios_leave_out_what_the_baseline_does_not_have() -> None:
    baseline = Objectives(accuracy=0.5, latency_ms=2, memory_gb=4, model_size_gb=1, co2_grams=0)
    assert ratios(_objectives(0.5, 1.0), baseline) == {"latency_ms": 0.5, "memory_gb": 0.25, "model_size_gb": 1.0}


def test_sources_are_summed_with_their_gains() -> None:
    records = [
        BASE,
        _with(1, _objectives(0.8, 0.5), source="seed"),
        _with(2, _objectives(0.8, 0.4)),
        _with(3, _objectives(0.1, 1.9)),
        record(4, Strategy.parse("rtn:bits=2"), "oom").model_copy(update={"source": "hybrid:optimizer"}),
    ]
    found = {item.source: item for item in source_summaries(records)}
    assert list(found) == ["seed", "hybrid:llm", "hybrid:optimizer"]
    assert (found["hybrid:llm"].episodes, found["hybrid:llm"].succeeded) == (2, 2)
    assert (found["hybrid:optimizer"].episodes, found["hybrid:optimizer"].succeeded) == (1, 0)
    assert found["hybrid:llm"].hypervolume_gain == pytest.approx(hypervolume_gains(records)[2])


def test_usage_adds_up_and_an_unknown_price_is_no_zero() -> None:
    unknown = CALL.model_copy(update={"cost_usd": None})
    assert planner_usage([]).cost_usd == 0.0
    assert planner_usage([unknown]).cost_usd is None
    usage = planner_usage([CALL, unknown, CALL], fallbacks=1)
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens) == (3, 300, 30)
    assert (usage.cost_usd, usage.fallbacks) == (1.0, 1)


def test_the_note_is_empty_without_a_language_model_and_one_line_with_it() -> None:
    assert planner_note(history(), planner_usage([]), 0, 0.5) == ""
    note = planner_note([BASE, _with(1, _objectives(0.8, 0.5))], planner_usage([CALL], 2), 0, 0.5)
    assert "\n" not in note
    assert "1 calls" in note
    assert "0.5000 USD" in note
    assert "2 decided by the search" in note
    assert "1 of 1 were its own, its share is 0.50" in note
    asked = _with(1, _objectives(0.8, 0.5), source="llm")
    assert "share" not in planner_note([BASE, asked], planner_usage([CALL]), 0, 0.5)
