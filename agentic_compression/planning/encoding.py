"""Strategies as Optuna parameters and back, over one walk of the space so that both directions agree.

Two encodings. *Conditional*: a parameter exists only when its method was chosen, which tree-structured samplers (TPE)
use. *Flat*: every parameter of every method always exists and those of unchosen methods are ignored, which samplers
need that learn only from parameters all trials share (GP, NSGA-II). Ordered values (numbers) are encoded by their
position on the grid, so that 2, 3, 4, 8 bits are neighbours and an off-grid value has a nearest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from agentic_compression.planning.grid import canonical, parameter_values
from agentic_compression.planning.moves import is_ordered
from agentic_compression.records import (
    MethodDescription,
    Parameter,
    ParameterValue,
    SearchSpace,
    Stage,
    Strategy,
    content_digest,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

__all__ = ["EncodedStrategy", "Encoding"]

STOP = "(stop)"

EncodedStrategy = tuple[dict[str, Any], "dict[str, BaseDistribution]"]


class _Source(Protocol):
    """Answers the walk's questions: from an Optuna trial, or from a strategy that is to be encoded."""

    def method(self, name: str, stage: int, options: Sequence[str]) -> str: ...

    def value(self, name: str, stage: int | None, method: str, parameter: Parameter) -> ParameterValue: ...


class _NotEncodableError(Exception):
    """The strategy lies outside the space as it is now."""


class Encoding:
    """The walk over a space's decisions.

    Args:
        space: the methods on offer.
        conditional: whether parameters exist only when their method was chosen.
    """

    def __init__(self, space: SearchSpace, conditional: bool) -> None:
        self.space, self.conditional = space, conditional

    def suggest(self, trial: Trial) -> Strategy:
        """Let a trial decide; the strategy is legal and canonical, or the baseline when nothing is on offer."""
        return self._walk(_FromTrial(trial))

    def encode(self, strategy: Strategy) -> EncodedStrategy | None:
        """Parameters and distributions of a strategy, or None when this space cannot express it.

        A strategy with conditions is none of this space: what was carried out is not known from it.
        """
        if any(stage.when for stage in strategy.stages):
            return None
        source = _FromStrategy(canonical(self.space, strategy))
        try:
            walked = self._walk(source)
        except _NotEncodableError:
            return None
        same = [stage.method for stage in walked.stages] == [stage.method for stage in source.strategy.stages]
        return (source.params, source.distributions) if same and walked.stages else None

    def _walk(self, source: _Source) -> Strategy:
        stages = self._walk_conditional(source) if self.conditional else self._walk_flat(source)
        return canonical(self.space, Strategy(stages=tuple(stages)))

    def _walk_conditional(self, source: _Source) -> list[Stage]:
        stages: list[Stage] = []
        before: list[MethodDescription] = []
        for number in range(self.space.max_stages):
            allowed = [method for method in self.space.offered if self.space.may_come(method, before)]
            if not allowed:
                break
            after = "+".join(sorted({method.category for method in before}))
            options = ([STOP] if before else []) + [method.name for method in allowed]
            # Optuna wants one set of choices a name, and what may come next depends on methods, not only on categories
            name = f"stage{number + 1} after {after}, {content_digest(options)[:4]}" if after else f"stage{number + 1}"
            chosen = source.method(name, number, options)
            if chosen == STOP:
                break
            method = next(method for method in allowed if method.name == chosen)
            repeat = sum(earlier.name == chosen for earlier in before)
            prefix = f"{chosen}#{repeat + 1}" if repeat else chosen
            values = {
                parameter.name: source.value(f"{prefix}.{parameter.name}", number, chosen, parameter)
                for parameter in method.parameters
            }
            stages.append(Stage(method=chosen, parameters=values))
            before.append(method)
        return stages

    def _walk_flat(self, source: _Source) -> list[Stage]:
        offered = self.space.offered
        if not offered:
            return []
        names = [method.name for method in offered]
        chosen = [
            source.method(f"stage{number + 1}", number, ([STOP] if number else []) + names)
            for number in range(self.space.max_stages)
        ]
        values = {
            method.name: {
                parameter.name: source.value(f"{method.name}.{parameter.name}", None, method.name, parameter)
                for parameter in method.parameters
            }
            for method in offered
        }
        stages: list[Stage] = []
        before: list[MethodDescription] = []
        for name in chosen:
            method = self.space.method(name)
            if method is None or not self.space.may_come(method, before):  # STOP, or an order the space forbids
                break
            stages.append(Stage(method=name, parameters=values[name]))
            before.append(method)
        return stages


class _FromTrial:
    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def method(self, name: str, stage: int, options: Sequence[str]) -> str:
        return str(self._trial.suggest_categorical(name, list(options)))

    def value(self, name: str, stage: int | None, method: str, parameter: Parameter) -> ParameterValue:
        allowed = parameter_values(parameter)
        if is_ordered(allowed):
            return allowed[self._trial.suggest_int(name, 0, len(allowed) - 1)]
        value: ParameterValue = self._trial.suggest_categorical(name, list(allowed))
        return value


class _FromStrategy:
    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def method(self, name: str, stage: int, options: Sequence[str]) -> str:
        from optuna.distributions import CategoricalDistribution

        chosen = self.strategy.stages[stage].method if stage < len(self.strategy.stages) else STOP
        if chosen not in options:
            raise _NotEncodableError
        self.params[name], self.distributions[name] = chosen, CategoricalDistribution(list(options))
        return chosen

    def value(self, name: str, stage: int | None, method: str, parameter: Parameter) -> ParameterValue:
        from optuna.distributions import CategoricalDistribution, IntDistribution

        stages = self.strategy.stages if stage is None else self.strategy.stages[stage : stage + 1]
        held = next((item.parameters for item in stages if item.method == method), {})
        value, allowed = held.get(parameter.name, parameter.default), parameter_values(parameter)
        if is_ordered(allowed):
            position = _nearest_position(allowed, value)
            self.params[name], self.distributions[name] = position, IntDistribution(0, len(allowed) - 1)
            return allowed[position]
        if value not in allowed:
            raise _NotEncodableError
        self.params[name], self.distributions[name] = value, CategoricalDistribution(list(allowed))
        return value


def _nearest_position(allowed: Sequence[ParameterValue], value: ParameterValue) -> int:
    if isinstance(value, bool | str):
        raise _NotEncodableError
    return min(range(len(allowed)), key=lambda position: abs(float(allowed[position]) - value))
