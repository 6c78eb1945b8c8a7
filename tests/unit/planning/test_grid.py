"""The finite grid of strategies against a brute-force enumeration."""

from __future__ import annotations

from itertools import product

import pytest

from agentic_compression.planning import StrategyGrid, canonical, enumerate_strategies, seed_strategies
from agentic_compression.records import MethodDescription, Parameter, SearchSpace, Stage, Strategy
from tests.unit.planning.spaces import GPTQ, LOW_RANK, MAGNITUDE, SPACE, TINY_SPACE


def _brute_force(space: SearchSpace) -> set[str]:
    """Every sequence of up to ``max_stages`` filled-in methods that the space itself calls legal."""
    stages = []
    for method in space.methods:
        grids = [parameter.values() or () for parameter in method.parameters]
        names = [parameter.name for parameter in method.parameters]
        stages += [Stage(method=method.name, parameters=dict(zip(names, row, strict=True))) for row in product(*grids)]
    keys = set()
    for length in range(1, space.max_stages + 1):
        for sequence in product(stages, repeat=length):
            strategy = Strategy(stages=sequence)
            if space.problem_with(strategy) is None:
                keys.add(canonical(space, strategy).key)
    return keys - {Strategy().key}


@pytest.mark.parametrize(
    "space", [TINY_SPACE, SPACE, SearchSpace(methods=(MAGNITUDE, LOW_RANK, GPTQ), max_stages=1)], ids=["tiny", "2", "1"]
)
def test_enumeration_equals_brute_force(space: SearchSpace) -> None:
    strategies, count = enumerate_strategies(space)
    keys = [strategy.key for strategy in strategies]
    assert len(keys) == len(set(keys)) == count
    assert set(keys) == _brute_force(space)
    assert all(space.problem_with(strategy) is None for strategy in strategies)
    assert all(canonical(space, strategy).key == strategy.key for strategy in strategies)


def test_a_method_twice_but_not_in_a_row_is_counted_as_brute_force_does() -> None:
    tune = MethodDescription(
        name="tune", category="healing", summary="", paper="", may_follow=("pruning", "healing", "quantization"),
        must_follow=("pruning", "quantization"),
    )  # fmt: skip
    few = [
        MAGNITUDE.model_copy(update={"parameters": ()}),
        tune,
        GPTQ.model_copy(update={"parameters": (), "may_follow": ("pruning", "healing")}),
    ]
    for methods in (few, few[::-1]):
        space = SearchSpace(methods=tuple(methods), max_stages=4)
        strategies, count = enumerate_strategies(space)
        assert {strategy.key for strategy in strategies} == _brute_force(space)
        assert len(strategies) == count


def test_three_stages_are_counted_when_orders_allow_them() -> None:
    space = SPACE.model_copy(update={"max_stages": 3})
    # 9 sparsities x 9 ratios x (24 rtn + 24 gptq) more than with two stages
    assert StrategyGrid(space).count == StrategyGrid(SPACE).count + 9 * 9 * 48


def test_enumeration_stops_at_its_cap_and_still_counts() -> None:
    strategies, count = enumerate_strategies(SPACE, cap=5)
    assert len(strategies) == 5
    assert count == 48 + 9 + 9 + 9 * 48 + 9 * 48 + 9 * 9


def test_grid_refuses_an_index_outside() -> None:
    with pytest.raises(IndexError, match="9 strategies, got index 9"):
        StrategyGrid(TINY_SPACE).at(9)


def test_continuous_range_is_searched_at_a_hundred_steps() -> None:
    ratio = Parameter(name="rank_ratio", kind="float", low=0.0, high=1.0, default=0.5)
    space = SearchSpace(methods=(LOW_RANK.model_copy(update={"parameters": (ratio,)}),), max_stages=1)
    assert StrategyGrid(space).count == 101


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("gptq:bits=4", "gptq:bits=4,group_size=128,order=natural"),
        ("magnitude:sparsity=0.3", "magnitude:sparsity=0.30000000000000004"),
        ("magnitude:sparsity=0 | gptq:bits=3", "gptq:bits=3"),
        ("magnitude:sparsity=0", "baseline"),
    ],
)
def test_equivalent_strategies_have_one_canonical_form(first: str, second: str) -> None:
    assert canonical(SPACE, Strategy.parse(first)).key == canonical(SPACE, Strategy.parse(second)).key


def test_draw_untried_finds_the_last_one_and_then_none() -> None:
    grid = StrategyGrid(TINY_SPACE)
    keys = {strategy.key for strategy in grid}
    last = grid.at(7).key
    drawn = grid.draw_untried(keys - {last}, (0, 0))
    assert drawn is not None
    assert drawn.key == last
    assert grid.draw_untried(keys, (0, 0)) is None


def test_seeds_are_legal_distinct_and_span_the_trade_off() -> None:
    seeds = [strategy for strategy, _ in seed_strategies(SPACE, limit=8)]
    assert len({strategy.key for strategy in seeds}) == len(seeds) >= 6
    assert all(SPACE.problem_with(strategy) is None for strategy in seeds)
    bits = [strategy.stages[-1].parameters.get("bits") for strategy in seeds[:4]]
    assert sorted(bits) == [2, 3, 4, 8]
    assert all(reason for _, reason in seed_strategies(SPACE, limit=8))


def test_seeds_use_only_offered_methods_and_the_nearest_allowed_value() -> None:
    seeds = seed_strategies(TINY_SPACE, limit=8)
    assert {stage.method for strategy, _ in seeds for stage in strategy.stages} <= {"rtn", "magnitude"}
    assert all(TINY_SPACE.problem_with(strategy) is None for strategy, _ in seeds)


def test_a_method_no_seed_names_is_tried_with_its_defaults() -> None:
    other = LOW_RANK.model_copy(update={"name": "third_party"})
    seeds = seed_strategies(SearchSpace(methods=(other,), max_stages=1))
    assert [strategy.label for strategy, _ in seeds] == ["third_party:rank_ratio=0.5"]
