"""The finite grid of legal strategies: canonical forms, how many there are, the one at an index, the untried ones."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import islice
from math import prod

from agentic_compression.records import (
    EpisodeRecord,
    MethodDescription,
    Parameter,
    ParameterValue,
    SearchSpace,
    Stage,
    Strategy,
)

__all__ = ["StrategyGrid", "axes", "canonical", "enumerate_strategies", "parameter_values", "tried_keys"]

CONTINUOUS_STEPS = 100
"""A range without a step is searched at this many equal steps."""

_NO_OP = {("pruning", "sparsity"): 0}  # (category, parameter): the value with which the method changes nothing
_REJECTIONS = 256


def parameter_values(parameter: Parameter) -> tuple[ParameterValue, ...]:
    """All values the search may give a parameter; a continuous range at 100 equal steps."""
    values = parameter.values()
    if values is not None:
        return values
    assert parameter.low is not None
    assert parameter.high is not None
    span = parameter.high - parameter.low
    return tuple(round(parameter.low + span * step / CONTINUOUS_STEPS, 10) for step in range(CONTINUOUS_STEPS + 1))


def canonical(space: SearchSpace, strategy: Strategy) -> Strategy:
    """The form in which equivalent strategies are equal, so that their keys compare.

    Defaults are written out, whole numbers of an integer range are ``int`` and of a float range ``float``, and stages
    that change nothing (pruning with sparsity 0) are left out. A strategy of such stages alone is the baseline.
    Templates' names are dropped. Methods this space does not know stay as they are.
    """
    stages = []
    for stage in space.complete(strategy).stages:
        method = space.method(stage.method)
        values = {name: _plain(method, name, value) for name, value in stage.parameters.items()}
        if method is None or not _changes_nothing(method, values):
            stages.append(Stage(method=stage.method, parameters=values, when=stage.when))
    return Strategy(stages=tuple(stages))


def tried_keys(space: SearchSpace, history: Sequence[EpisodeRecord]) -> frozenset[str]:
    """Keys of the canonical forms of everything recorded, whatever came of it."""
    return frozenset(canonical(space, record.strategy).key for record in history)


def enumerate_strategies(space: SearchSpace, cap: int = 10_000) -> tuple[tuple[Strategy, ...], int]:
    """The legal strategies of a space, the baseline left out.

    Args:
        space: the methods on offer; continuous ranges count at 100 steps.
        cap: how many to list.

    Returns:
        At most ``cap`` distinct strategies in canonical form, and how many there are in all (without a cap).
    """
    grid = StrategyGrid(space)
    return tuple(islice(grid, cap)), grid.count


class StrategyGrid:
    """Every legal strategy of a space under one index, without listing them.

    Whether a method may come next depends only on which methods came before and which of them was the last, so the
    counts are a table over (methods used, the last, stages left).
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._settings = {method.name: _Settings(method) for method in space.offered}
        self._counts: dict[tuple[frozenset[str], str, int], int] = {}

    @cached_property
    def count(self) -> int:
        """How many legal strategies there are, the baseline left out."""
        return self._count(frozenset(), "", self.space.max_stages) - 1

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Strategy]:
        return (self.at(index) for index in range(self.count))

    def at(self, index: int) -> Strategy:
        """The strategy at an index in ``range(count)``.

        Raises:
            IndexError: outside that range.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"the grid has {self.count} strategies, got index {index}")
        rest, left, used, last = index + 1, self.space.max_stages, frozenset[str](), ""
        stages: list[Stage] = []
        while rest:  # 0 is "stop here"
            rest -= 1
            left -= 1
            for method in self._next(used, last):
                variants = self._settings[method.name].count
                tails = self._count(used | {method.name}, method.name, left)
                if rest < variants * tails:
                    variant, rest = divmod(rest, tails)
                    values = self._settings[method.name].at(variant)
                    stages.append(Stage(method=method.name, parameters=values))
                    used, last = used | {method.name}, method.name
                    break
                rest -= variants * tails
        return Strategy(stages=tuple(stages))

    def draw_untried(self, tried: Collection[str], seed: Sequence[int]) -> Strategy | None:
        """A uniformly drawn legal strategy whose key is not among those tried; None when all are.

        Args:
            tried: keys of canonical forms.
            seed: numbers that fix the draw.
        """
        if self.count == 0:
            return None
        draw = random.Random(repr(tuple(seed)))  # noqa: S311 - a search, not a secret
        for _ in range(_REJECTIONS):
            strategy = self.at(draw.randrange(self.count))
            if strategy.key not in tried:
                return strategy
        start = draw.randrange(self.count)  # nearly everything is tried: take the next free one
        for offset in range(self.count):
            strategy = self.at((start + offset) % self.count)
            if strategy.key not in tried:
                return strategy
        return None

    def settings(self, name: str) -> int:
        """How many distinct settings an offered method has.

        Raises:
            KeyError: for a method that is not offered.
        """
        return self._settings[name].count

    def stage(self, name: str, index: int) -> Stage:
        """An offered method in its setting of that index, in ``range(settings(name))``.

        Raises:
            KeyError: for a method that is not offered.
        """
        return Stage(method=name, parameters=self._settings[name].at(index))

    def _next(self, used: frozenset[str], last: str) -> list[MethodDescription]:
        before = [method for method in self.space.offered if method.name in used and method.name != last]
        before += [method for method in self.space.offered if method.name == last]
        return [method for method in self.space.offered if self.space.may_come(method, before)]

    def _count(self, used: frozenset[str], last: str, left: int) -> int:
        if left == 0:
            return 1
        if (used, last, left) not in self._counts:
            self._counts[used, last, left] = 1 + sum(
                self._settings[method.name].count * self._count(used | {method.name}, method.name, left - 1)
                for method in self._next(used, last)
            )
        return self._counts[used, last, left]


class _Settings:
    """The distinct settings of one method's parameters under one index."""

    def __init__(self, method: MethodDescription) -> None:
        self._axes = axes(method)
        self._listed: list[dict[str, ParameterValue]] | None = None
        if any(parameter.active_when for parameter in method.parameters):
            space = SearchSpace(methods=(method,))
            products = (self._product(index) for index in range(self._size))
            one_stage = (Strategy(stages=(Stage(method=method.name, parameters=values),)) for values in products)
            distinct = {plain.key: plain.stages[0] for plain in (space.complete(strategy) for strategy in one_stage)}
            self._listed = [stage.parameters for stage in distinct.values()]

    @property
    def _size(self) -> int:
        return prod(len(values) for _, values in self._axes)

    @property
    def count(self) -> int:
        return self._size if self._listed is None else len(self._listed)

    def at(self, index: int) -> dict[str, ParameterValue]:
        return self._product(index) if self._listed is None else self._listed[index]

    def _product(self, index: int) -> dict[str, ParameterValue]:
        values: dict[str, ParameterValue] = {}
        for name, allowed in self._axes:
            index, position = divmod(index, len(allowed))
            values[name] = allowed[position]
        return values


def axes(method: MethodDescription) -> list[tuple[str, tuple[ParameterValue, ...]]]:
    """A method's parameters with the values that the search may give them, those that change nothing left out."""
    return [
        (
            parameter.name,
            tuple(
                _plain(method, parameter.name, value)
                for value in parameter_values(parameter)
                if not _changes_nothing(method, {parameter.name: value})
            ),
        )
        for parameter in method.parameters
    ]


def _plain(method: MethodDescription | None, name: str, value: ParameterValue) -> ParameterValue:
    parameter = method.parameter(name) if method else None
    if parameter is None or parameter.kind == "choice" or isinstance(value, bool | str):
        return value
    if parameter.kind == "int":
        return int(value) if float(value).is_integer() else value
    return round(float(value), 10)


def _changes_nothing(method: MethodDescription, values: dict[str, ParameterValue]) -> bool:
    return any(
        (method.category, name) in _NO_OP and value == _NO_OP[method.category, name] for name, value in values.items()
    )
