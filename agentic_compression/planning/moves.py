"""Small steps on the grid of strategies: one parameter to a neighbouring value, or one stage more, fewer or other."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from agentic_compression.planning.grid import StrategyGrid, axes, canonical
from agentic_compression.records import MethodDescription, ParameterValue, SearchSpace, Stage, Strategy

__all__ = ["is_legal", "is_ordered", "parameter_moves", "sequence_of", "stage_moves"]


def sequence_of(strategy: Strategy) -> tuple[str, ...]:
    """The methods in their order."""
    return tuple(stage.method for stage in strategy.stages)


def is_ordered(values: Sequence[ParameterValue]) -> bool:
    """Whether neighbours in this list are alike: numbers that rise."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values) and (
        list(values) == sorted(values)
    )


def is_legal(space: SearchSpace, strategy: Strategy) -> bool:
    """Whether a search may propose this: a strategy of the space that changes something, without conditions."""
    plain = not any(stage.when for stage in strategy.stages)
    return plain and not canonical(space, strategy).is_baseline and space.problem_with(strategy) is None


def parameter_moves(space: SearchSpace, strategy: Strategy) -> tuple[Strategy, ...]:
    """The legal strategies with the same methods that are one step away in one parameter.

    A step is to the next smaller or larger value of a number, or to any other value of a choice without an order. From
    a number that is not on the grid both grid values beside it are one step away.

    Args:
        space: the methods on offer.
        strategy: a strategy of this space.

    Returns:
        Distinct strategies in canonical form, none of them the given one, in a fixed order.
    """
    plain = canonical(space, strategy)
    found = []
    for place, stage in enumerate(plain.stages):
        method = space.method(stage.method)
        for name, values in axes(method) if method else ():
            for value in _beside(values, stage.parameters.get(name)):
                changed = Stage(method=stage.method, parameters=stage.parameters | {name: value})
                found.append(Strategy(stages=(*plain.stages[:place], changed, *plain.stages[place + 1 :])))
    same = sequence_of(plain)
    return tuple(move for move in _distinct(space, found, plain) if sequence_of(move) == same)


def stage_moves(grid: StrategyGrid, strategy: Strategy, draw: random.Random) -> tuple[Strategy, ...]:
    """The legal strategies with one stage more, one fewer, or one of another method; settings of new stages are drawn.

    Args:
        grid: of the space.
        strategy: a strategy of its space.
        draw: for the settings.

    Returns:
        Distinct strategies in canonical form, one for each change of the methods, in a fixed order.
    """
    space, plain = grid.space, canonical(grid.space, strategy)
    stages, found = plain.stages, []
    for place in range(len(stages) + 1):
        if len(stages) < space.max_stages:
            found += [(*stages[:place], new, *stages[place:]) for new in _new_stages(grid, draw)]
        if place < len(stages):
            found.append((*stages[:place], *stages[place + 1 :]))
            others = [new for new in _new_stages(grid, draw) if new.method != stages[place].method]
            found += [(*stages[:place], new, *stages[place + 1 :]) for new in others]
    return _distinct(space, [Strategy(stages=changed) for changed in found], plain)


def _new_stages(grid: StrategyGrid, draw: random.Random) -> list[Stage]:
    offered: tuple[MethodDescription, ...] = grid.space.offered
    return [grid.stage(method.name, draw.randrange(grid.settings(method.name))) for method in offered]


def _beside(values: Sequence[ParameterValue], value: ParameterValue | None) -> list[ParameterValue]:
    if not is_ordered(values) or isinstance(value, bool | str) or value is None:
        return [other for other in values if other != value or type(other) is not type(value)]
    numbers = [float(other) for other in values]
    below = [place for place, other in enumerate(numbers) if other < value - 1e-9]
    above = [place for place, other in enumerate(numbers) if other > value + 1e-9]
    return [values[place] for place in (*below[-1:], *above[:1])]


def _distinct(space: SearchSpace, strategies: Iterable[Strategy], without: Strategy) -> tuple[Strategy, ...]:
    found: dict[str, Strategy] = {}
    for strategy in strategies:
        if is_legal(space, strategy):
            plain = canonical(space, strategy)
            found.setdefault(plain.key, plain)
    found.pop(without.key, None)
    return tuple(found.values())
