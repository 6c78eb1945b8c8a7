"""A strategy: an ordered list of stages, each a compression method with its parameters."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from agentic_compression.records.record import Record, content_digest

__all__ = ["BASELINE", "Condition", "ParameterValue", "Stage", "Strategy"]

ParameterValue = bool | int | float | str
MethodName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
ParameterName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


_FAMILIES = ("prune", "quantize", "low_rank", "heal")
_CONDITION = re.compile(r"(?P<stage>.*?)\s+if\s+(?P<metric>\w+)\s*>\s*(?P<above>[0-9.eE+-]+)\s*", re.DOTALL)


class Condition(Record):
    """When a stage is carried out: only if what the stages before it made is that much worse than the baseline."""

    metric: Literal["accuracy_drop", "perplexity_increase"] = Field(
        description="accuracy_drop: baseline's accuracy minus the model's; perplexity_increase: the model's over the "
        "baseline's, minus 1"
    )
    above: float = Field(ge=0, allow_inf_nan=False, description="the stage runs when the metric is greater")

    @property
    def label(self) -> str:
        """``accuracy_drop>0.01``."""
        return f"{self.metric}>{self.above:g}"


class Stage(Record):
    """One method with its parameters. Parameters left out take the method's defaults."""

    method: MethodName = Field(description="name of a registered compression method")
    parameters: dict[ParameterName, ParameterValue] = Field(default_factory=dict)
    when: Condition | None = Field(default=None, description="carried out only then; always when absent")

    @property
    def label(self) -> str:
        """``gptq:bits=4,group_size=64``, with `` if accuracy_drop>0.01`` when there is a condition."""
        values = ",".join(f"{key}={_format_value(value)}" for key, value in sorted(self.parameters.items()))
        stage = f"{self.method}:{values}" if values else self.method
        return f"{stage} if {self.when.label}" if self.when else stage


class Strategy(Record):
    """An ordered list of stages; no stages at all is the uncompressed baseline."""

    stages: tuple[Stage, ...] = Field(default=(), max_length=8)
    name: str | None = Field(default=None, description="a template's name, for people; not part of the key")

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is done to the model."""
        return not self.stages

    @property
    def key(self) -> str:
        """Digest of the stages; two strategies with the same key are the same strategy."""
        return content_digest([stage.model_dump(mode="json", exclude_none=True) for stage in self.stages])

    @property
    def label(self) -> str:
        """``magnitude:sparsity=0.3 | gptq:bits=4``; ``baseline`` when there are no stages."""
        return " | ".join(stage.label for stage in self.stages) or "baseline"

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Read the form that ``label`` writes; ``prune:wanda,sparsity=0.3`` is read as ``wanda:sparsity=0.3``.

        Raises:
            ValueError: when the text is not ``method[:name=value[,name=value]…] [if metric>value] [| method…]``.
        """
        if text.strip() in {"", "baseline"}:
            return BASELINE
        return cls(stages=tuple(_parse_stage(part) for part in text.split("|")))


def _format_value(value: ParameterValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parse_value(text: str) -> ParameterValue:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _parse_stage(text: str) -> Stage:
    written, when = _parse_condition(text.strip())
    method, _, rest = written.partition(":")
    pairs = [item.strip() for item in rest.split(",") if item.strip()]
    if method.strip() in _FAMILIES and pairs and "=" not in pairs[0]:
        method = pairs.pop(0)
    parameters: dict[str, ParameterValue] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ValueError(f"a stage is method:name=value,name=value, got {text.strip()!r}")
        if name.strip() in parameters:
            raise ValueError(f"{name.strip()} is given twice in {text.strip()!r}")
        parameters[name.strip()] = _parse_value(value.strip())
    try:
        return Stage(method=method.strip(), parameters=parameters, when=when)
    except ValidationError:
        raise ValueError(f"a stage begins with a method's name in lower case, got {text.strip()!r}") from None


def _parse_condition(text: str) -> tuple[str, Condition | None]:
    found = _CONDITION.fullmatch(text)
    if found is None:
        return text, None
    try:
        values = {"metric": found["metric"], "above": float(found["above"])}
        return found["stage"], Condition.model_validate(values)
    except (ValueError, ValidationError):
        raise ValueError(
            f"a condition is 'if accuracy_drop>NUMBER' or 'if perplexity_increase>NUMBER', got {text!r}"
        ) from None


BASELINE = Strategy()
