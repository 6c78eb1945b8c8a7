"""Rungs: what cheap evidence said of a candidate before it was measured in full.

Rung 0 is arithmetic on what is known for certain (size, then the costs of serving), rung 1 the divergence from the
baseline on a few cached sequences, rung 2 a tenth of the items, rung 3 all of them. Only what reached the end of rung 3
may stand on the frontier.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.evaluation import BenchmarkScore, Divergence, Estimate, Objectives
from agentic_compression.records.record import Record

__all__ = ["FLOORS", "NEARLY", "OPTIMISM", "KlEvidence", "Report", "Rival", "Rung", "RungReading", "ScreeningPlan"]

Rung = Literal[0, 1, 2, 3]
OPTIMISM = 0.85
"""Share of the latency and CO2 of a few requests that is taken for the least a measurement will say."""
NEARLY = 0.97
"""The same for memory, which hardly varies from one repetition to the next."""
FLOORS = {
    "latency_floor_ms": ("latency_ms", OPTIMISM),
    "co2_floor_grams": ("co2_grams", OPTIMISM),
    "memory_floor_gb": ("memory_gb", NEARLY),
}
"""Readings that are lower bounds: the objective, and the share of what was seen."""


class RungReading(Record):
    """One rung's evidence and what followed from it."""

    rung: Rung
    quantity: str = Field(
        description="'model_size_gb', 'weights_gb', 'co2_floor_grams', 'latency_floor_ms', 'memory_floor_gb', "
        "'latency_ms', 'kl', 'memory_gb' or 'accuracy'"
    )
    value: float
    low: float
    high: float
    n: int = Field(ge=0, description="items, tokens, repetitions, or 0 for arithmetic")
    seconds: float = Field(default=0.0, ge=0)
    passed: bool
    reason: str = ""

    @property
    def objective(self) -> tuple[str, float]:
        """What was read and its value; of a floor, the objective below it and what was seen before it was lowered."""
        name, share = FLOORS.get(self.quantity, (self.quantity, 1.0))
        return name, self.value / share


class Rival(Record):
    """A measured episode that a candidate has to stand beside."""

    episode: int = Field(ge=0)
    objectives: Objectives = Field(description="on the search side of the items")
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    kl: float | None = None
    engine: str = Field(default="", description="what ran it")
    weights_gb: float = Field(default=0.0, ge=0, description="its weights as loaded; 0: not known")
    scores: dict[str, tuple[float, ...]] = Field(
        default_factory=dict, description="by task, an item each in the order of the plan's items; empty: not paired"
    )


class KlEvidence(Record):
    """An earlier episode's divergence beside the most that its accuracy can be."""

    kl: float
    accuracy: float = Field(description="upper end of its interval")


class ScreeningPlan(Record):
    """What the rungs decide on; without one, everything is measured in full and nothing on the report side."""

    rivals: tuple[Rival, ...] = Field(
        default=(), description="the baseline first, then the episodes measured in full so far; none for the baseline"
    )
    reject: bool = Field(default=True, description="otherwise measured in full, whatever the rungs would say")
    items: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="ids of the search side by task, in the order of the rivals' scores"
    )
    evidence: tuple[KlEvidence, ...] = ()
    proxy_share: float = Field(default=0.1, gt=0, le=1, description="share of the items on rung 2")
    least_gain: float = Field(
        default=0.01, ge=0, lt=1, description="share of the hypervolume that a candidate must be able to add"
    )
    error: float = Field(
        default=0.05, gt=0, lt=1, description="of rejecting by its accuracy a candidate that would have added that much"
    )
    sequences: int = Field(default=128, ge=8, description="cached sequences of rung 1")


class Report(Record):
    """A checkpoint's quality on the items that no plan has seen."""

    accuracy: Estimate
    benchmarks: tuple[BenchmarkScore, ...]
    divergence: Divergence | None = None
    warnings: tuple[str, ...] = Field(default=(), description="tasks too small to be split")
    seconds: float = 0.0
