"""What the search may choose from: methods, their parameters with ranges, and the legal stage orders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from agentic_compression.records.record import Record
from agentic_compression.records.strategy import ParameterValue, Stage, Strategy

__all__ = ["Category", "MethodDescription", "Parameter", "SearchSpace"]

Category = Literal["pruning", "low_rank", "healing", "quantization"]


class Parameter(Record):
    """One parameter's range, as declared beside the field of the method's config."""

    name: str
    kind: Literal["choice", "int", "float"]
    choices: tuple[ParameterValue, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    default: ParameterValue
    description: str = ""
    active_when: tuple[str, ParameterValue] | None = Field(
        default=None, description="(other parameter, value): only then does this one matter; else its default stands"
    )

    @model_validator(mode="after")
    def _range_is_complete(self) -> Parameter:
        if self.kind == "choice" and not self.choices:
            raise ValueError(f"parameter {self.name}: a choice needs choices")
        if self.kind != "choice" and (self.low is None or self.high is None or self.low > self.high):
            raise ValueError(f"parameter {self.name}: a range needs low <= high, got {self.low}..{self.high}")
        return self

    @property
    def allowed(self) -> str:
        """The range in words, for messages and tables: ``2, 3, 4, 8`` or ``0.1..0.9 step 0.1``."""
        if self.kind == "choice":
            return ", ".join(str(choice) for choice in self.choices)
        step = f" step {self.step:g}" if self.step else ""
        return f"{self.low:g}..{self.high:g}{step}"

    def values(self) -> tuple[ParameterValue, ...] | None:
        """All values on the grid; None when the range is continuous."""
        if self.kind == "choice":
            return self.choices
        assert self.low is not None
        assert self.high is not None
        step = self.step or (1.0 if self.kind == "int" else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        grid = [round(self.low + index * step, 10) for index in range(count)]
        return tuple(int(value) for value in grid) if self.kind == "int" else tuple(grid)

    def problem_with(self, value: ParameterValue) -> str | None:
        """Why this value is not allowed, or None. ``bool`` never passes for a number."""
        if self.kind == "choice":
            fits = any(type(value) is type(choice) and value == choice for choice in self.choices)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            fits = False
        else:
            assert self.low is not None
            assert self.high is not None
            whole = self.kind == "float" or float(value).is_integer()
            fits = whole and self.low - 1e-9 <= value <= self.high + 1e-9
        return None if fits else f"{self.name} must be one of {self.allowed}, got {value!r}"


class MethodDescription(Record):
    """Everything one may know of a method without importing it."""

    name: str
    category: Category
    summary: str
    paper: str = Field(description="where the idea is from")
    parameters: tuple[Parameter, ...] = ()
    may_follow: tuple[Category, ...] = Field(
        default=(), description="categories of stages that may come before this one"
    )
    must_follow: tuple[Category, ...] = Field(
        default=(), description="one stage before this one must be of one of these categories"
    )
    may_not_follow: tuple[str, ...] = Field(default=(), description="methods that must not come before this one")
    needs_calibration: bool = False
    trains: bool = Field(default=False, description="whether it optimises the model on training text")
    needs_gpu: bool = False
    available: bool = True
    unavailable_reason: str | None = Field(default=None, description="why not, and what to install")
    stored_as: str = Field(
        default="", description="form of the weights that several methods share: one code reads and serves them"
    )
    version: str = Field(default="1", description="raised whenever the same parameters give another result")
    example: str = ""

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of that name, or None."""
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


class SearchSpace(Record):
    """The methods on offer and how many stages a strategy may have."""

    methods: tuple[MethodDescription, ...]
    max_stages: int = Field(default=2, ge=1, le=8)

    def method(self, name: str) -> MethodDescription | None:
        """The method of that name, or None."""
        return next((method for method in self.methods if method.name == name), None)

    @property
    def offered(self) -> tuple[MethodDescription, ...]:
        """The methods that can run on this machine."""
        return tuple(method for method in self.methods if method.available)

    def complete(self, strategy: Strategy) -> Strategy:
        """The same strategy with every default written out, so that equal strategies have equal keys.

        A parameter that does not matter, because another has not the value it depends on, takes its default.
        """
        stages = []
        for stage in strategy.stages:
            method = self.method(stage.method)
            values = _with_defaults(method, stage.parameters) if method else stage.parameters
            stages.append(Stage(method=stage.method, parameters=values, when=stage.when))
        return Strategy(stages=tuple(stages), name=strategy.name)

    def brief(self, strategy: Strategy) -> str:
        """The label for people's eyes: of each method the first parameter and those that are not at their default."""
        stages = []
        for stage in strategy.stages:
            method = self.method(stage.method)
            defaults = {p.name: p.default for p in method.parameters} if method else {}
            first = next(iter(defaults), None)
            shown = {
                name: value
                for name, value in stage.parameters.items()
                if name == first or defaults.get(name, ...) != value
            }
            stages.append(Stage(method=stage.method, parameters=shown, when=stage.when))
        return Strategy(stages=tuple(stages)).label

    def may_come(self, method: MethodDescription, before: Sequence[MethodDescription]) -> bool:
        """Whether a method may be the next stage after these."""
        return _problem_with_order(method, before) is None

    def problem_with(self, strategy: Strategy) -> str | None:
        """Why this strategy is refused (unknown method or parameter, value, order), or None."""
        if len(strategy.stages) > self.max_stages:
            return f"a strategy has at most {self.max_stages} stages, got {len(strategy.stages)}"
        before: list[MethodDescription] = []
        for stage in strategy.stages:
            method = self.method(stage.method)
            if method is None:
                known = ", ".join(method.name for method in self.methods)
                return f"unknown method {stage.method!r}; known: {known} (see: acf methods)"
            if problem := _problem_with_stage(method, stage) or _problem_with_order(method, before):
                return problem
            if stage.when is not None and not before:
                return f"the first stage, {method.name}, cannot have a condition: nothing was done before it"
            before.append(method)
        return None


def _with_defaults(method: MethodDescription, given: dict[str, ParameterValue]) -> dict[str, ParameterValue]:
    values = {parameter.name: parameter.default for parameter in method.parameters} | given
    for parameter in method.parameters:
        if parameter.active_when and values.get(parameter.active_when[0]) != parameter.active_when[1]:
            values[parameter.name] = parameter.default
    return values


def _problem_with_stage(method: MethodDescription, stage: Stage) -> str | None:
    if not method.available:
        return f"{method.name} is not available: {method.unavailable_reason}"
    for name, value in stage.parameters.items():
        parameter = method.parameter(name)
        if parameter is None:
            known = ", ".join(known_parameter.name for known_parameter in method.parameters)
            return f"{method.name} has no parameter {name!r}; it has: {known}"
        if problem := parameter.problem_with(value):
            return f"{method.name}: {problem}"
    return None


def _problem_with_order(method: MethodDescription, before: Sequence[MethodDescription]) -> str | None:
    if before and before[-1].name == method.name:
        return f"{method.name} cannot directly follow itself; leave one of them out"
    for earlier in before:
        if earlier.name in method.may_not_follow:
            return f"{method.name} cannot follow {earlier.name}; leave one of them out"
        if earlier.category not in method.may_follow:
            allowed = ", ".join(method.may_follow) or "nothing"
            return (
                f"{method.name} ({method.category}) cannot follow {earlier.name} ({earlier.category}); "
                f"it may follow: {allowed}"
            )
    if method.must_follow and not any(earlier.category in method.must_follow for earlier in before):
        return f"{method.name} must follow a stage of {' or '.join(method.must_follow)}; put one before it"
    return None
