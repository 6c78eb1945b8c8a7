"""A to-do plan of experiments: what each is for, what it is expected to take and give, and what came of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.agent.wish import Wish
from agentic_compression.records import Record, Strategy, StudyConfig

__all__ = ["CompressionPlan", "ItemEstimate", "ItemOutcome", "Option", "Outlook", "PlanItem", "Triple"]

Triple = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""


class Outlook(Record):
    """What is expected of a strategy, in proportion to the baseline."""

    accuracy_drop: Triple = Field(description="baseline minus candidate, a fraction")
    size_ratio: Triple
    latency_ratio: Triple
    memory_ratio: Triple
    co2_ratio: Triple
    chance: float = Field(ge=0, le=1, description="that every constraint holds, by these intervals")
    merit: float = Field(description="chance times 1 minus the weighted loss; higher is better")


class ItemEstimate(Record):
    """What an item is expected to take."""

    compress_seconds: float = Field(ge=0)
    evaluate_seconds: float = Field(ge=0)
    grams: float = Field(ge=0, description="CO2e of both")
    peak_bytes: int = Field(default=0, ge=0, description="of compressing")
    basis: str = Field(default="", description="what the estimate rests on")
    outlook: Outlook | None = Field(default=None, description="None for the baseline, and where nothing can be said")

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.compress_seconds + self.evaluate_seconds


class Option(Record):
    """One way of healing that a sub-agent weighed."""

    strategy: Strategy
    base: str = Field(description="the strategy that it heals, as a label")
    trainable: int = Field(ge=0, description="values that train, from the model's shape")
    recovery: float | None = Field(default=None, description="accuracy expected to come back, a fraction")
    estimate: ItemEstimate


class ItemOutcome(Record):
    """What was measured, beside what was expected."""

    episode: int | None = None
    strategy: str = ""
    status: str
    error: str = ""
    seconds: float = Field(default=0.0, ge=0)
    grams: float = Field(default=0.0, ge=0)
    reused: bool = Field(default=False, description="known before; its time and CO2e say nothing of the estimate")
    measured: dict[str, float] = Field(
        default_factory=dict, description="accuracy_drop and *_ratio, on the search items"
    )
    errors: dict[str, float] = Field(
        default_factory=dict,
        description="accuracy_drop: measured minus expected; everything else: measured over expected, minus 1",
    )
    within: dict[str, bool] = Field(default_factory=dict, description="whether the interval held what was measured")
    verdict: str = Field(default="", description="of the evaluation sub-agent")


class PlanItem(Record):
    """One thing to do, and who does it."""

    number: int = Field(ge=1)
    kind: Literal["baseline", "seed", "candidate", "lora", "distill", "evaluate"]
    agent: Literal["search", "lora", "distillation", "evaluation"]
    title: str
    why: str = ""
    strategy: Strategy | None = Field(default=None, description="for candidates and healing what is expected now")
    estimate: ItemEstimate
    options: tuple[Option, ...] = Field(default=(), description="what the sub-agent weighed, the best first")
    status: Literal["pending", "running", "done", "failed", "skipped"] = "pending"
    reason: str = Field(default="", description="why it was skipped or failed")
    outcome: ItemOutcome | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is still to be done; an item that was interrupted is."""
        return self.status in {"pending", "running"}


class CompressionPlan(Record):
    """A wish, the study that answers it, and its experiments."""

    version: Literal[1] = 1
    wish: Wish
    study: StudyConfig
    parameters: int = Field(gt=0, description="of the uncompressed model")
    size_gb: float = Field(gt=0, description="of the uncompressed model: measured, else from its shape")
    items: tuple[PlanItem, ...] = Field(min_length=1)
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of the items that are still to be done."""
        return sum(item.estimate.seconds for item in self.items if item.is_open)

    @property
    def grams(self) -> float:
        """CO2e of the items that are still to be done."""
        return sum(item.estimate.grams for item in self.items if item.is_open)

    def with_item(self, changed: PlanItem) -> CompressionPlan:
        """The same plan with this item in place of the one of its number."""
        items = tuple(changed if item.number == changed.number else item for item in self.items)
        return self.model_copy(update={"items": items})
