"""What a compression method is: a frozen config with its search range, an ``apply`` function and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Category, MethodDescription, Parameter, ParameterValue

if TYPE_CHECKING:
    import torch

    from agentic_compression.checkpoints.gguf_plan import GgufPlan

__all__ = [
    "ActiveWhen",
    "Choice",
    "Compressed",
    "CompressionContext",
    "Method",
    "MethodConfig",
    "Needs",
    "Range",
    "Workload",
    "parameters_of",
]


@dataclass(frozen=True)
class ActiveWhen:
    """A field that matters only when another has this value: ``ActiveWhen("pattern", "unstructured")``.

    Otherwise it takes its default, so that settings that do the same are the same.
    """

    parameter: str
    value: ParameterValue


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
        active = next((item for item in info.metadata if isinstance(item, ActiveWhen)), None)
        active_when = (active.parameter, active.value) if active else None
        if isinstance(declared, Choice):
            parameter = Parameter(
                name=name,
                kind="choice",
                choices=declared.values,
                default=info.default,
                description=description,
                active_when=active_when,
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
                active_when=active_when,
            )
        parameters.append(parameter)
    return tuple(parameters)


@dataclass(frozen=True)
class CompressionContext:
    """What a method may use besides the model and its config.

    Attributes:
        seed: of everything random in this stage.
        calibration: token ids, one int64 tensor ``(1, tokens)`` a document; None when the stage needs none.
        training: token ids to train on, like ``calibration`` but of all the documents; None when the stage trains not.
        tokenizer: of the model; None when it has none.
        load_base: loads the uncompressed model again, in evaluation mode, as a teacher; None outside ``compress``.
        scratch: a folder that outlives a killed process: what a long stage needs to go on where it stopped. It is
            removed once the strategy is done. None outside ``compress``.
        device: where to compute.
        batch_size: calibration or training windows at once; halved when a stage ran out of memory and is tried again.
        progress: told as layers are done.
    """

    seed: int = 0
    calibration: Sequence[torch.Tensor] | None = None
    training: Sequence[torch.Tensor] | None = None
    tokenizer: Any = None
    load_base: Callable[[], Any] | None = None
    scratch: Path | None = None
    device: str = "cpu"
    batch_size: int = 16
    progress: Progress = no_progress


@dataclass(frozen=True)
class Compressed:
    """What ``apply`` returns.

    Attributes:
        model: the compressed model; may be the one that came in, changed in place.
        gguf: how to write it as a GGUF file for llama.cpp; None writes safetensors.
        notes: what was done differently from asked, one line a layer; they go into the manifest.
    """

    model: Any
    notes: tuple[str, ...] = ()
    gguf: GgufPlan | None = None


@dataclass(frozen=True)
class Workload:
    """What a method's cost depends on.

    Attributes:
        parameters: of the whole model.
        linear_parameters: of the linears that methods compress.
        blocks: decoder blocks.
        widest_input: largest ``in_features`` of those linears.
        vocabulary: width of the logits.
        hidden: width of the residual stream.
        weight_bytes: of the model as loaded.
        bytes_per_parameter: of a dense weight as loaded.
        calibration_tokens: tokens of the calibration windows together; 0 without.
        training_tokens: tokens of the training windows together; 0 without.
        threads: CPU threads.
    """

    parameters: int
    linear_parameters: int
    blocks: int
    widest_input: int
    vocabulary: int
    hidden: int
    weight_bytes: int
    bytes_per_parameter: int = 2
    calibration_tokens: int = 0
    training_tokens: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Needs:
    """What one run of a method is expected to take.

    Attributes:
        peak_bytes: largest growth of the process while it runs, the loaded model included.
        seconds: wall time; a guess from operation counts and this machine's rates.
    """

    peak_bytes: int
    seconds: float


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
        trains: whether it optimises the model on ``context.training``.
        stored_as: form of the weights that several methods share, so that what one costs to serve tells of the others.
        may_follow: categories of stages that may come before it.
        must_follow: categories of which one stage must come before it; empty when it can be the first.
        may_not_follow: names of methods that must not come before it, whatever their category.
        needs: bytes and seconds one run takes, told from the model's shape; None when nothing is known.
        version: raised whenever the same parameters give another result; part of the content key.
        requires: importable libraries it needs beyond the package's own dependencies.
        unavailable: why it cannot run on this machine, or None when it can, where a library and a GPU do not say it
            all; imports no torch.
    """

    name: str
    category: Category
    config: type[MethodConfig]
    apply: Callable[[Any, Any, CompressionContext], Compressed]
    summary: str
    paper: str
    needs_calibration: bool = False
    needs_gpu: bool = False
    trains: bool = False
    stored_as: str = ""
    may_follow: tuple[Category, ...] = ()
    must_follow: tuple[Category, ...] = ()
    may_not_follow: tuple[str, ...] = ()
    version: str = "1"
    requires: tuple[str, ...] = field(default=())
    calibrates: Callable[[Any], bool] | None = None
    needs: Callable[[Workload, Any], Needs] | None = None
    unavailable: Callable[[], str | None] | None = None

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
            stored_as=self.stored_as,
            summary=self.summary,
            paper=self.paper,
            parameters=parameters,
            may_follow=self.may_follow,
            must_follow=self.must_follow,
            may_not_follow=self.may_not_follow,
            trains=self.trains,
            needs_calibration=self.needs_calibration,
            needs_gpu=self.needs_gpu,
            available=unavailable_reason is None,
            unavailable_reason=unavailable_reason,
            version=self.version,
            example=f"{self.name}:{shown}" if shown else self.name,
        )
