"""One episode from plan to record: a strategy planned, applied, measured and recorded, whatever the outcome."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.evaluation import CheckpointRef, Environment, Evaluation, Objectives
from agentic_compression.records.planning import Expected, PlannerCall
from agentic_compression.records.record import Record
from agentic_compression.records.screening import Report, RungReading
from agentic_compression.records.strategy import Strategy
from agentic_compression.records.study import TerminationReason

__all__ = [
    "CompressionOutcome",
    "EpisodePlan",
    "EpisodeRecord",
    "EpisodeStatus",
    "EvaluationOutcome",
    "Proposal",
    "QualityOutcome",
    "StageTiming",
]

EpisodeStatus = Literal["succeeded", "rejected", "infeasible", "failed", "oom", "timed_out"]
"""``rejected``: cheap evidence showed that it cannot change the frontier, so it was not measured in full."""


class Proposal(Record):
    """What a planner says: a strategy with its reason, or the end of the search."""

    strategy: Strategy | None = Field(default=None, description="None when the planner ends the search")
    end: TerminationReason | None = Field(default=None, description="set exactly when there is no strategy")
    rationale: str = ""
    source: str = Field(description="what made it: 'baseline', 'seed', 'tpe', 'random', 'llm' …")
    expected: Expected = Field(default_factory=dict, description="what its maker expects of it; empty: nothing said")
    calls: tuple[PlannerCall, ...] = Field(default=(), description="what asking a language model took")
    fallback: str = Field(default="", description="why another planner than the chosen one decided; empty: it did not")


class EpisodePlan(Record):
    """A claimed episode number with the strategy to try."""

    study: str
    episode: int = Field(ge=0, description="0 is the uncompressed baseline")
    strategy: Strategy | None = Field(default=None, description="None when the study has ended")
    end: TerminationReason | None = None
    rationale: str = ""
    planner: str
    source: str
    seed: int
    run_id: str | None = Field(default=None, description="the MLflow run that records this episode")
    expected: Expected = Field(default_factory=dict, description="what the planner expects of it")
    calls: tuple[PlannerCall, ...] = ()
    fallback: str = ""


class StageTiming(Record):
    """Seconds and bytes of one applied stage."""

    stage: str
    seconds: float = Field(ge=0)
    peak_bytes: int = Field(
        default=0, ge=0, description="largest growth while it ran, the loaded model included; 0 where not measured"
    )
    cached: bool = False


class CompressionOutcome(Record):
    """A checkpoint, or the reason there is none."""

    status: EpisodeStatus
    error: str | None = None
    checkpoint: CheckpointRef | None = None
    stages: tuple[StageTiming, ...] = ()
    seconds: float = 0.0
    joules: float = 0.0
    energy_source: Literal["measured", "estimated"] = "estimated"
    peak_rss_bytes: int = 0
    peak_bytes: int = Field(
        default=0, ge=0, description="largest growth of the process, or of a GPU's allocations; 0 where not measured"
    )
    estimated_peak_bytes: int | None = Field(default=None, description="what was expected of peak_bytes")
    estimated_seconds: float | None = Field(default=None, description="what was expected of seconds")
    decisions: tuple[str, ...] = Field(
        default=(), description="of every stage with a condition: whether it was carried out, and why"
    )
    cached: bool = Field(default=False, description="the same work had been done before")


class EvaluationOutcome(Record):
    """An evaluation, or the reason there is none."""

    status: EpisodeStatus
    error: str | None = None
    evaluation: Evaluation | None = None
    screening: tuple[RungReading, ...] = Field(default=(), description="what each rung said, in order")
    report: Report | None = Field(default=None, description="quality on the reported items, where it was measured")
    seconds: float = 0.0
    load_seconds: float = Field(default=0.0, description="of these, until the checkpoint could be asked")
    joules: float = 0.0
    energy_source: Literal["measured", "estimated"] = "estimated"
    cached: bool = False


class QualityOutcome(Record):
    """Accuracy and perplexity alone, for deciding whether a stage is needed."""

    status: EpisodeStatus
    error: str | None = None
    accuracy: float | None = None
    perplexity: float | None = None
    seconds: float = 0.0
    joules: float = 0.0
    energy_source: Literal["measured", "estimated"] = "estimated"


class EpisodeRecord(Record):
    """What a study remembers of one episode (``episode_NNN/results.json`` holds a flat form of it)."""

    study: str
    episode: int = Field(ge=0)
    strategy: Strategy
    status: EpisodeStatus
    error: str | None = None
    objectives: Objectives | None = Field(default=None, description="set exactly when status is succeeded")
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    checkpoint: CheckpointRef | None = None
    evaluation: Evaluation | None = None
    screening: tuple[RungReading, ...] = ()
    report: Report | None = Field(default=None, description="set for the baseline and what stood on the frontier")
    rationale: str = ""
    planner: str = ""
    source: str = ""
    seed: int = 0
    run_id: str | None = None
    timings: dict[str, float] = Field(default_factory=dict, description="seconds by phase")
    joules: float = Field(default=0.0, description="spent by this episode, compression and evaluation")
    energy_source: Literal["measured", "estimated"] = "estimated"
    co2_grams_spent: float = Field(default=0.0, description="emitted by running this episode")
    decisions: tuple[str, ...] = Field(default=(), description="what became of stages with a condition")
    expected: Expected = Field(default_factory=dict, description="what the planner expected of it")
    calls: tuple[PlannerCall, ...] = Field(default=(), description="what asking a language model took")
    fallback: str = Field(default="", description="why another planner than the chosen one decided")
    environment: Environment | None = None
    started_at: str = Field(default="", description="UTC, ISO 8601")
    finished_at: str = ""
    reused: bool = Field(default=False, description="all work came from the content-keyed store")
