"""The reward against an independent reckoning, and the properties that planners rely on."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.planning.reward import (
    LOWEST,
    WEIGHTS,
    assumed,
    known_values,
    present_rewards,
    rewards,
    utility,
    violation,
)
from agentic_compression.records import BASELINE, Constraint, EpisodeRecord, Objectives, RungReading, Strategy
from tests.unit.planning.spaces import record

BASE = Objectives(accuracy=0.8, latency_ms=100.0, memory_gb=2.0, model_size_gb=1.0, co2_grams=4.0)
NAMES = tuple(Objectives.model_fields)


def _made(episode: int, objectives: Objectives | None, status: str = "succeeded") -> EpisodeRecord:
    strategy = BASELINE if episode == 0 else Strategy.parse(f"rtn:bits={episode}")
    made = record(episode, strategy, status)  # type: ignore[arg-type]
    return made.model_copy(update={"objectives": objectives})


def _scaled(accuracy: float, cost: float) -> Objectives:
    costs = {name: cost * getattr(BASE, name) for name in NAMES[1:]}
    return Objectives(accuracy=accuracy, **costs)


def _readings(**values: float) -> tuple[RungReading, ...]:
    return tuple(
        RungReading(rung=0, quantity=name, value=value, low=value, high=value, n=0, passed=True)
        for name, value in values.items()
    )


def _covered(points: list[Objectives]) -> float:
    """Hypervolume by inclusion and exclusion, from nothing but the definition of the reference box."""
    tops = []
    for point in points:
        losses = [1 - point.accuracy] + [getattr(point, n) / (2 * getattr(BASE, n)) for n in NAMES[1:]]
        if max(losses) < 1:
            tops.append(losses)
    total = 0.0
    for size in range(1, len(tops) + 1):
        for chosen in itertools.combinations(tops, size):
            sides = [1 - max(column) for column in zip(*chosen, strict=True)]
            total += (-1) ** (size + 1) * float(np.prod(sides))
    return total


OBJECTIVES = st.builds(
    Objectives,
    accuracy=st.floats(0, 1),
    latency_ms=st.floats(0, 300),
    memory_gb=st.floats(0, 6),
    model_size_gb=st.floats(0, 3),
    co2_grams=st.floats(0, 12),
)


def test_weights_are_a_half_for_accuracy_and_sum_to_one() -> None:
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)
    assert WEIGHTS["accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (BASE, 0.5 * 1 + 4 * 0.125 * 0.5),
        (_scaled(0.4, 0.5), 0.5 * 0.5 + 4 * 0.125 * 0.75),
        (_scaled(0.0, 2.0), 0.0),
        (_scaled(0.9, 0.0), 1.0),
        (BASE.model_copy(update={"latency_ms": 400.0}), 0.5 + 3 * 0.125 * 0.5),
    ],
)
def test_utility_is_the_documented_formula(objectives: Objectives, expected: float) -> None:
    assert utility(objectives, BASE) == pytest.approx(expected)


def test_a_baseline_of_nothing_divides_nothing_by_zero() -> None:
    empty = BASE.model_copy(update={"accuracy": 0.0, "co2_grams": 0.0})
    assert utility(empty, empty) == pytest.approx(0.5 + 3 * 0.125 * 0.5 + 0.125)
    assert utility(empty.model_copy(update={"co2_grams": 1.0}), empty) == pytest.approx(0.5 + 3 * 0.125 * 0.5)


@settings(deadline=None, max_examples=60)
@given(st.lists(OBJECTIVES, min_size=1, max_size=5))
def test_reward_equals_utility_and_the_share_added_by_inclusion_and_exclusion(points: list[Objectives]) -> None:
    history = [_made(0, BASE), *(_made(number, point) for number, point in enumerate(points, start=1))]
    found, present = rewards(history), present_rewards(history)
    before = [BASE]
    for number, point in enumerate(points, start=1):
        whole = _covered([*before, point])
        added = (whole - _covered(before)) / whole
        assert found[number] == pytest.approx((utility(point, BASE) + added) / 2, abs=1e-9)
        before.append(point)
    everything = _covered(before)
    for number, point in enumerate(points, start=1):
        others = [other for other in before if other != point]
        if points.count(point) == 1 and point != BASE:
            part = (everything - _covered(others)) / everything
            assert present[number] == pytest.approx((utility(point, BASE) + part) / 2, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(OBJECTIVES, st.sampled_from(["succeeded", "failed", "oom", "rejected"])), max_size=8),
    st.sampled_from([(), ("accuracy_drop<=0.02",), ("size_ratio<=0.5", "latency_ms<=50", "accuracy>=0.5")]),
    st.randoms(use_true_random=False),
)
def test_rewards_lie_within_their_range_whatever_the_order(
    results: list[tuple[Objectives, str]], texts: tuple[str, ...], shuffle: random.Random
) -> None:
    constraints = [Constraint.parse(text) for text in texts]
    history = [_made(0, BASE)]
    for number, (objectives, status) in enumerate(results, start=1):
        made = _made(number, objectives if status == "succeeded" else None, status)
        shown = _readings(accuracy=objectives.accuracy) if status == "rejected" else ()
        history.append(made.model_copy(update={"screening": shown}))
    found = rewards(history, constraints)
    assert set(found) == set(range(1, len(history)))
    assert all(-1 <= value <= 1 for value in found.values())
    assert all(found[n] == LOWEST for n, (_, status) in enumerate(results, start=1) if status in {"failed", "oom"})
    shuffle.shuffle(history)
    assert rewards(history, constraints) == found


@settings(deadline=None, max_examples=60)
@given(OBJECTIVES, st.sampled_from(NAMES), st.floats(0.05, 0.95))
def test_better_in_one_objective_never_earns_less(worse: Objectives, name: str, factor: float) -> None:
    value = getattr(worse, name)
    better = worse.model_copy(update={name: value + (1 - value) * factor if name == "accuracy" else value * factor})
    earned = [rewards([_made(0, BASE), _made(1, point)])[1] for point in (worse, better)]
    assert earned[1] >= earned[0] - 1e-12


def test_a_broken_constraint_costs_at_least_half_and_more_the_further_it_is() -> None:
    history = [_made(0, BASE), *(_made(n, _scaled(0.8 - 0.1 * n, 0.5)) for n in (1, 2, 3))]
    free, bound = rewards(history), rewards(history, [Constraint.parse("accuracy_drop<=0.15")])
    assert bound[1] == free[1]
    assert free[2] - bound[2] == pytest.approx((1 + 0.05) / 2)
    assert free[3] - bound[3] == pytest.approx((1 + 0.15) / 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy_drop<=0.2", 0.0),
        ("accuracy_drop<=0.1", 0.1),
        ("accuracy>=0.9", 0.3),
        ("size_ratio<=0.25", 0.5),
        ("latency_ms<=40", 0.2),
        ("memory_gb<=0", 1.0),
        ("model_size_gb>=1", 0.5),
    ],
)
def test_violation_is_how_far_the_value_is_beyond_the_bound(text: str, expected: float) -> None:
    assert violation(Constraint.parse(text), _scaled(0.6, 0.5), BASE) == pytest.approx(expected)


def test_a_rejected_episode_is_worth_what_was_read_of_it() -> None:
    read = _readings(accuracy=0.4, model_size_gb=0.5, kl=0.3, latency_floor_ms=1.0)
    rejected = _made(1, None, "rejected").model_copy(update={"screening": read})
    assert known_values(rejected) == {"accuracy": 0.4, "model_size_gb": 0.5}
    assert assumed(rejected, BASE) == Objectives(
        accuracy=0.4, latency_ms=200.0, memory_gb=4.0, model_size_gb=0.5, co2_grams=8.0
    )
    unread, failed = _made(2, None, "rejected"), _made(3, None, "failed")
    found = rewards([_made(0, BASE), rejected, unread, failed], [Constraint.parse("latency_ms<=1")])
    assert found[1] == pytest.approx((0.5 * 0.5 + 0.125 * 0.75) / 2)  # latency was not read, so it breaks nothing
    assert found[2] == 0.0
    assert found[3] == LOWEST


def test_without_a_measured_baseline_only_failures_are_rewarded() -> None:
    history = [_made(0, None, "failed"), _made(1, BASE), _made(2, None, "oom")]
    assert rewards(history) == {2: LOWEST} == present_rewards(history)
    assert rewards([]) == {}


def test_numbers_that_are_not_finite_count_as_a_failure() -> None:
    wrong = _made(1, BASE.model_copy(update={"latency_ms": float("nan")}))
    assert rewards([_made(0, BASE), wrong]) == {1: LOWEST}
    assert known_values(wrong) == {}
