"""What planners know beyond the history, what they expect, and what asking a language model took."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.record import Record
from agentic_compression.records.spec import ModelSpec
from agentic_compression.records.strategy import Strategy
from agentic_compression.records.study import Constraint

__all__ = ["Candidate", "Expected", "Experience", "PlannerCall", "Recalled", "Recommended", "Situation"]

Expected = dict[str, tuple[float, float, float]]
"""By objective: the value a planner expects and the ends of its 95 % interval."""


class Candidate(Record):
    """A strategy that an optimizer would try next, with what it expects of it."""

    strategy: Strategy
    expected: Expected = Field(default_factory=dict)
    gain: float = Field(ge=0, description="expected share of the reference box that it adds to the hypervolume")
    seconds: float | None = Field(default=None, description="expected time of compressing and measuring it")


class Experience(Record):
    """One measured strategy of any study, in proportion to its own baseline, so that it means something elsewhere."""

    study: str
    episode: int = Field(ge=0)
    model: str
    digest: str = Field(description="of the model")
    family: str = "unknown"
    architecture: str = "unknown"
    parameters: int = Field(gt=0)
    dataset: str
    tasks: tuple[str, ...] = ()
    device: str = "cpu"
    objective: str = ""
    strategy: Strategy
    status: str
    error: str = ""
    accuracy: float | None = Field(default=None, description="on the search items")
    baseline_accuracy: float | None = None
    items: int = Field(default=0, ge=0, description="items behind the accuracy")
    kl: float | None = Field(default=None, description="nats a token from the baseline")
    ratios: dict[str, float] = Field(
        default_factory=dict, description="latency_ms, memory_gb, model_size_gb, co2_grams over the baseline's"
    )
    at: str = Field(default="", description="UTC, ISO 8601")


class Recalled(Record):
    """An experience that bears on a new study."""

    experience: Experience
    similarity: float = Field(ge=0, le=1, description="of its situation to the present one")
    weight: float = Field(ge=0, le=1, description="similarity, less what contradicts it")


class Recommended(Record):
    """A strategy that earlier studies in similar situations speak for."""

    strategy: Strategy
    score: float = Field(ge=0, le=1, description="mean worth of its results there, lower where they are few")
    n: int = Field(ge=1, description="results behind it, failures included")
    reasons: tuple[str, ...] = Field(default=(), description="in words; names in them are from outside")


class Situation(Record):
    """What a planner may know besides the space, the history and the seed."""

    spec: ModelSpec | None = None
    dataset: str = ""
    tasks: tuple[str, ...] = ()
    device: str = "cpu"
    objective: str = Field(default="", description="the user's wish in natural language; data, never instructions")
    constraints: tuple[Constraint, ...] = ()
    episodes_left: int | None = Field(default=None, ge=0)
    seconds_left: float | None = Field(default=None, ge=0)
    co2_spent_grams: float = Field(default=0.0, ge=0)
    co2_left_grams: float | None = Field(default=None, ge=0)
    recalled: tuple[Recalled, ...] = Field(default=(), description="from memory, what weighs most first")
    recommended: tuple[Recommended, ...] = Field(default=(), description="what the recalled adds up to, the best first")


class PlannerCall(Record):
    """One request to a language model."""

    model: str
    prompt_version: str
    prompt: str = Field(default="", description="messages as JSON, for the trace")
    answer: str = Field(default="", description="as it came, cut where it is too long")
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cost_usd: float | None = Field(default=None, ge=0, description="None where the model's price is not known")
    seconds: float = Field(default=0.0, ge=0)
    started_at: str = Field(default="", description="UTC, ISO 8601")
    attempts: int = Field(default=1, ge=1, description="requests sent, those repeated after an error included")
    status: Literal["ok", "invalid", "failed"] = "ok"
    error: str = ""
