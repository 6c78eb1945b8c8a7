"""Two checkpoints on the same items: paired differences, flips, ratios and a verdict."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.evaluation import Divergence, Estimate, Split
from agentic_compression.records.record import Record

__all__ = ["Comparison", "Flips", "PairedScore", "Verdict"]

Verdict = Literal["better", "worse", "indistinguishable"]


class Flips(Record):
    """Answers that changed between two models on the same items (arXiv 2407.09141)."""

    n: int = Field(ge=1)
    right_to_wrong: int = Field(ge=0)
    wrong_to_right: int = Field(ge=0)
    p_value: float = Field(ge=0, le=1, description="exact two-sided McNemar test")

    @property
    def share(self) -> float:
        """Changed answers over items."""
        return (self.right_to_wrong + self.wrong_to_right) / self.n


class PairedScore(Record):
    """One task's difference, candidate minus baseline, with the paired bootstrap's 95 % interval."""

    task: str
    metric: str
    baseline: float
    candidate: float
    difference: Estimate = Field(description="its n counts what was resampled: items, or documents of a text task")
    p_value: float = Field(ge=0, le=1, description="sign-flip test; of items scored 1 or 0 the exact McNemar test")
    flips: Flips | None = Field(
        default=None, description="None where items score between 0 and 1, or are tokens that depend on each other"
    )


class Comparison(Record):
    """What ``acf compare A B`` says of B beside A."""

    baseline: str
    candidate: str
    verdict: Verdict
    summary: str = Field(description="the verdict in one sentence")
    accuracy: Estimate = Field(description="weighted difference over tasks, candidate minus baseline")
    p_value: float = Field(ge=0, le=1, description="sign-flip test of the weighted difference")
    tasks: tuple[PairedScore, ...]
    flips: Flips | None = Field(default=None, description="over all items scored 1 or 0")
    divergence: Divergence | None = None
    items_needed: int | None = Field(
        default=None, description="items that would settle an open verdict at 80 % power; None when settled"
    )
    detectable_drop: float | None = Field(
        default=None, description="smallest difference these items show as one at 80 % power; None where none would"
    )
    ratios: dict[str, Estimate] = Field(
        default_factory=dict,
        description="candidate over baseline: latency_ms, ttft_ms, memory_gb, model_size_gb, joules_per_request, "
        "co2_grams",
    )
    split: Split = "all"
    warnings: tuple[str, ...] = Field(default=(), description="what makes the comparison unfair, e.g. another machine")
