"""The bandit: what it learns of sequences, where it searches inside one, and that failures teach."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.methods import search_space
from agentic_compression.planning import StrategyGrid, canonical, load_planner, tried_keys
from agentic_compression.planning.bandit import BanditPlanner, _open_arms, drawn_weights
from agentic_compression.planning.moves import sequence_of
from agentic_compression.planning.nearest import nearest_untried
from agentic_compression.records import (
    BASELINE,
    Constraint,
    EpisodeRecord,
    MethodDescription,
    Objectives,
    SearchSpace,
    Situation,
    Strategy,
)
from tests.unit.planning.spaces import SPACE, record

ARMS = {
    ("rtn",), ("gptq",), ("magnitude",), ("svd_llm",), ("magnitude", "rtn"), ("magnitude", "gptq"),
    ("magnitude", "svd_llm"), ("svd_llm", "rtn"), ("svd_llm", "gptq"),
}  # fmt: skip


def _worth(cost: float, accuracy: float = 0.7) -> Objectives:
    return Objectives(accuracy=accuracy, latency_ms=cost, memory_gb=cost, model_size_gb=cost, co2_grams=cost)


def _study(space: SearchSpace, episodes: int, worth: dict[str, float], seed: int) -> list[EpisodeRecord]:
    """A study in which every strategy that has a method costs what that method says; the others cost 1."""
    history = [record(0, BASELINE).model_copy(update={"objectives": _worth(1.0)})]
    while len(history) <= episodes:
        strategy = BanditPlanner().propose(space, history, seed).strategy
        assert strategy is not None
        cost = min([worth.get(name, 1.0) for name in sequence_of(strategy)])
        cost *= 1 - 1e-4 * len(history)  # a little better every time, so that it is not all dominated
        history.append(record(len(history), strategy).model_copy(update={"objectives": _worth(cost)}))
    return history


def test_the_arms_are_the_legal_sequences() -> None:
    assert set(_open_arms(StrategyGrid(SPACE), [])) == ARMS
    grid = StrategyGrid(SPACE)
    assert {sequence_of(strategy) for strategy in grid} == ARMS


def test_a_space_with_too_many_sequences_still_plans() -> None:
    space = search_space(4)
    history = [record(0, BASELINE), record(1, StrategyGrid(space).at(10**9))]
    found = [load_planner("bandit").propose(space, history, seed).strategy for seed in range(3)]
    assert len({strategy.key for strategy in found if strategy}) == 3
    assert all(strategy and space.problem_with(strategy) is None for strategy in found)


def test_the_sequences_that_pay_are_pulled_more_often() -> None:
    counts: Counter[bool] = Counter()
    for seed in range(3):
        for item in _study(SPACE, 30, {"svd_llm": 0.3}, seed)[16:]:
            counts["svd_llm" in sequence_of(item.strategy)] += 1
    drawn: Counter[bool] = Counter()
    chance = random.Random(0)
    for _ in range(1000):
        drawn["svd_llm" in chance.choice(sorted(ARMS))] += 1
    assert counts[True] / counts.total() > 1.3 * drawn[True] / drawn.total()


def test_a_sequence_of_methods_that_fail_is_avoided_and_one_failure_does_not_end_it() -> None:
    grid = StrategyGrid(SPACE)
    gptq = [strategy for strategy in grid if sequence_of(strategy) == ("gptq",)]
    rtn = [strategy for strategy in grid if sequence_of(strategy) == ("rtn",)]
    base = [record(0, BASELINE).model_copy(update={"objectives": _worth(1.0)})]
    for number in range(12):  # both alike, in turns
        made = record(number + 1, (rtn, gptq)[number % 2][number])
        base.append(made.model_copy(update={"objectives": _worth(0.9 - 0.01 * number)}))

    def failing(*numbers: int) -> list[EpisodeRecord]:
        gone = {"status": "oom", "objectives": None}
        return [item.model_copy(update=gone) if item.episode in numbers else item for item in base]

    def share(history: list[EpisodeRecord]) -> float:
        proposals = [BanditPlanner().propose(SPACE, history, seed).strategy for seed in range(60)]
        return sum("gptq" in sequence_of(strategy) for strategy in proposals if strategy) / 60

    assert share(failing(2, 4, 6, 8, 10, 12)) < 0.5 * share(base)
    assert share(failing(4)) > 0


def test_a_new_sequence_is_drawn_and_a_known_one_searched_around_its_best() -> None:
    one = SearchSpace(methods=(SPACE.methods[0],), max_stages=1)
    grid = StrategyGrid(one)
    history = [record(0, BASELINE), record(1, grid.at(0))]
    first = BanditPlanner().propose(one, history, 0)
    assert "drawn uniformly" in first.rationale
    assert len({BanditPlanner().propose(one, history, seed).strategy.key for seed in range(12)}) > 6
    centre = canonical(one, Strategy.parse("rtn:bits=4,group_size=64,symmetric=true"))
    worst = canonical(one, Strategy.parse("rtn:bits=2,group_size=32,symmetric=false"))
    history = [
        record(0, BASELINE).model_copy(update={"objectives": _worth(1.0)}),
        record(1, worst).model_copy(update={"objectives": _worth(1.5, 0.1)}),
        record(2, centre).model_copy(update={"objectives": _worth(0.2)}),
    ]
    for seed in range(10):
        proposal = BanditPlanner().propose(one, history, seed)
        assert proposal.strategy is not None
        found, held = proposal.strategy.stages[0].parameters, centre.stages[0].parameters
        assert sum(found[name] != held[name] for name in held) == 1
        assert found["bits"] in {3, 4, 8}  # never two steps at once
        assert found["group_size"] in {32, 64, 128}


@settings(deadline=None, max_examples=40)
@given(start=st.integers(0, 23), tried=st.frozensets(st.integers(0, 23), max_size=20))
def test_nearest_untried_is_the_nearest_by_distance_on_the_grid(start: int, tried: frozenset[int]) -> None:
    one = SearchSpace(methods=(SPACE.methods[0],), max_stages=1)
    strategies = list(StrategyGrid(one))
    axes = {"bits": [2, 3, 4, 8], "group_size": [32, 64, 128], "symmetric": [True, False]}

    def distance(other: Strategy) -> int:
        pairs = [(other.stages[0].parameters[name], strategies[start].stages[0].parameters[name]) for name in axes]
        return sum(abs(list(axes[n]).index(a) - list(axes[n]).index(b)) for n, (a, b) in zip(axes, pairs, strict=True))

    keys = frozenset(strategies[index].key for index in tried)
    free = [s for s in strategies if s.key not in keys and s.key != strategies[start].key]
    nearest = min((distance(strategy) for strategy in free), default=0)
    expected = {strategy.key for strategy in free if distance(strategy) == nearest}
    assert {strategy.key for strategy in nearest_untried(one, strategies[start], keys)} == expected


def test_constraints_change_what_pays() -> None:
    history = _study(SPACE, 14, {}, 0)
    free = BanditPlanner()
    bound = Situation(constraints=(Constraint.parse("size_ratio<=0.01"), Constraint.parse("accuracy>=0.69")))
    texts = [free.propose(SPACE, history, seed).rationale for seed in range(5)]
    assert texts != [free.propose(SPACE, history, seed, bound).rationale for seed in range(5)]


def test_weights_are_positive_and_sum_to_one() -> None:
    draw = random.Random(0)
    found = [drawn_weights(draw) for _ in range(200)]
    assert all(sum(weights.values()) == pytest.approx(1) and min(weights.values()) > 0 for weights in found)
    assert 0.4 < sum(weights["accuracy"] for weights in found) / 200 < 0.6


def test_a_method_that_this_space_lacks_teaches_nothing() -> None:
    history = [record(0, BASELINE), record(1, Strategy.parse("gone:x=1")), record(2, Strategy.parse("awq:bits=4"))]
    assert BanditPlanner().propose(SPACE, history, 0).strategy is not None


def test_the_last_settings_of_a_space_are_found() -> None:
    tune = MethodDescription(name="tune", category="pruning", summary="", paper="")
    space = SearchSpace(methods=(SPACE.methods[0], tune), max_stages=2)
    grid = StrategyGrid(space)
    everything = [record(0, BASELINE), *(record(n, s) for n, s in enumerate(grid, start=1))]
    for missing in (1, grid.count // 2, grid.count):
        history = [item for item in everything if item.episode != missing]
        proposal = BanditPlanner().propose(space, history, 0)
        assert proposal.strategy is not None
        assert proposal.strategy.key not in tried_keys(space, history)
    assert BanditPlanner().propose(space, everything, 0).end == "search_space_exhausted"
