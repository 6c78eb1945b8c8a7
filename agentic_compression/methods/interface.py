"""What a compression method is: a frozen config with its search range, an ``apply`` function and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Category, MethodDescription, Parameter, ParameterValue

if TYPE_CHECKING:
    import torch

__all__ = ["Choice", "Compressed", "CompressionContext", "Method", "MethodConfig", "Range", "parameters_of"]


class Choice:
    """Search range of a field: one of these values. ``bits: Annotated[int, Choice(2, 3, 4, 8)] = 4``."""

    def __init__(self, *values: ParameterValue) -> None:
        """Hold the allowed values, in the order they are shown."""
        self.values = values


@dataclass(frozen=True)
class Range:
    """Search range of a numeric field, both ends included; ``step`` makes a grid for planners that need one."""

    low: float
    high: float
    step: float | None = None


class MethodConfig(BaseModel):
    """A method's parameters: frozen, no unknown fields, no silent conversions, every value inside its declared range.

    Every field needs a default and a :class:`Choice` or :class:`Range` annotation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="after")
    def _within_ranges(self) -> Self:
        for parameter in parameters_of(type(self)):
            if problem := parameter.problem_with(getattr(self, parameter.name)):
                raise ValueError(problem)
        return self


def parameters_of(config: type[MethodConfig]) -> tuple[Parameter, ...]:
    """The parameters a config declares, in order.

    Raises:
        TypeError: when a field has no default, or not exactly one range annotation.
    """
    parameters = []
    for name, info in config.model_fields.items():
        ranges = [item for item in info.metadata if isinstance(item, Choice | Range)]
        if len(ranges) != 1 or info.is_required():
            raise TypeError(f"{config.__name__}.{name} must have a default and exactly one of Choice(...), Range(...)")
        description = info.description or ""
        declared = ranges[0]
        if isinstance(declared, Choice):
            parameter = Parameter(
                name=name, kind="choice", choices=declared.values, default=info.default, description=description
            )
        else:
            parameter = Parameter(
                name=name,
                kind="int" if info.annotation is int else "float",
                low=declared.low,
                high=declared.high,
                step=declared.step,
                default=info.default,
                description=description,
            )
        parameters.append(parameter)
    return tuple(parameters)


@dataclass(frozen=True)
class CompressionContext:
    """What a method may use besides the model and its config.

    Attributes:
        seed: of everything random in this stage.
        calibration: token ids, one int64 tensor ``(1, tokens)`` a document; None when the stage needs none.
        device: where to compute.
        progress: told as layers are done.
    """

    seed: int = 0
    calibration: Sequence[torch.Tensor] | None = None
    device: str = "cpu"
    progress: Progress = no_progress


@dataclass(frozen=True)
class Compressed:
    """What ``apply`` returns.

    Attributes:
        model: the compressed model; may be the one that came in, changed in place.
        notes: what was done differently from asked, one line a layer; they go into the manifest.
    """

    model: Any
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """One compression method.

    Attributes:
        name: as users write it, ``[a-z][a-z0-9_]*``.
        category: decides the legal stage orders.
        config: its parameters with their ranges.
        apply: ``apply(model, config, context)``, deterministic given ``context.seed``, heavy imports inside.
        summary: one line for tables and for a planner.
        paper: where the idea is from.
        needs_calibration: whether ``context.calibration`` must be there, for at least some parameters.
        calibrates: whether these parameters need it; ``needs_calibration`` decides for all when None.
        needs_gpu: whether it runs on CUDA only.
        may_follow: categories of stages that may come before it.
        version: raised whenever the same parameters give another result; part of the content key.
        requires: importable libraries it needs beyond the package's own dependencies.
    """

    name: str
    category: Category
    config: type[MethodConfig]
    apply: Callable[[Any, Any, CompressionContext], Compressed]
    summary: str
    paper: str
    needs_calibration: bool = False
    needs_gpu: bool = False
    may_follow: tuple[Category, ...] = ()
    version: str = "1"
    requires: tuple[str, ...] = field(default=())
    calibrates: Callable[[Any], bool] | None = None

    def needs_calibration_for(self, config: MethodConfig) -> bool:
        """Whether a run with this config uses calibration data."""
        return self.calibrates(config) if self.calibrates else self.needs_calibration

    def describe(self, unavailable_reason: str | None = None) -> MethodDescription:
        """Everything one may know without running it."""
        parameters = parameters_of(self.config)
        shown = ",".join(f"{parameter.name}={parameter.default}" for parameter in parameters[:2])
        return MethodDescription(
            name=self.name,
            category=self.category,
            summary=self.summary,
            paper=self.paper,
            parameters=parameters,
            may_follow=self.may_follow,
            needs_calibration=self.needs_calibration,
            needs_gpu=self.needs_gpu,
            available=unavailable_reason is None,
            unavailable_reason=unavailable_reason,
            version=self.version,
            example=f"{self.name}:{shown}" if shown else self.name,
        )
