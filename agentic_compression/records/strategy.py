"""A strategy: an ordered list of stages, each a compression method with its parameters."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from agentic_compression.records.record import Record, content_digest

__all__ = ["BASELINE", "ParameterValue", "Stage", "Strategy"]

ParameterValue = bool | int | float | str
MethodName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
ParameterName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class Stage(Record):
    """One method with its parameters. Parameters left out take the method's defaults."""

    method: MethodName = Field(description="name of a registered compression method")
    parameters: dict[ParameterName, ParameterValue] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """``gptq:bits=4,group_size=64``."""
        values = ",".join(f"{key}={_format_value(value)}" for key, value in sorted(self.parameters.items()))
        return f"{self.method}:{values}" if values else self.method


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
        return content_digest([stage.model_dump(mode="json") for stage in self.stages])

    @property
    def label(self) -> str:
        """``magnitude:sparsity=0.3 | gptq:bits=4``; ``baseline`` when there are no stages."""
        return " | ".join(stage.label for stage in self.stages) or "baseline"

    @classmethod
    def parse(cls, text: str) -> Strategy:
        """Read the form that ``label`` writes.

        Raises:
            ValueError: when the text is not ``method[:name=value[,name=value]…] [| method…]``.
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
    method, _, rest = text.strip().partition(":")
    parameters: dict[str, ParameterValue] = {}
    for pair in filter(None, (item.strip() for item in rest.split(","))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ValueError(f"a stage is method:name=value,name=value, got {text.strip()!r}")
        if name.strip() in parameters:
            raise ValueError(f"{name.strip()} is given twice in {text.strip()!r}")
        parameters[name.strip()] = _parse_value(value.strip())
    try:
        return Stage(method=method.strip(), parameters=parameters)
    except ValidationError:
        raise ValueError(f"a stage begins with a method's name in lower case, got {text.strip()!r}") from None


BASELINE = Strategy()
