"""The Pareto frontier of a study and the files a user's scripts may read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.evaluation import Environment, Estimate, Objectives
from agentic_compression.records.planning import Expected
from agentic_compression.records.record import Record
from agentic_compression.records.screening import RungReading

__all__ = [
    "EpisodeResults",
    "Excluded",
    "ExpectationError",
    "FinalResults",
    "FrontierDocument",
    "ObjectiveInfo",
    "PlannerUsage",
    "Solution",
    "SourceSummary",
]


class ObjectiveInfo(Record):
    """Name, direction and unit of an objective."""

    name: str
    direction: Literal["maximize", "minimize"]
    unit: str


class Solution(Record):
    """One non-dominated episode."""

    episode: int
    strategy: str = Field(description="label, as 'acf compress --strategy' reads it")
    objectives: Objectives = Field(description="accuracy on the report items where the study has split them")
    intervals: dict[str, tuple[float, float]]
    search_accuracy: float | None = Field(
        default=None, description="on the items that plans are made on, which flatter the best of many; None: not split"
    )
    checkpoint: str | None
    registry_version: str | None = None
    withheld: str = Field(default="", description="why it is not registered although it is on the frontier")
    dominates: tuple[int, ...] = Field(default=(), description="episodes this one dominates")
    meets_constraints: bool = True
    is_knee: bool = False
    rationale: str = ""
    rebuild_command: str = ""
    serve_command: str = Field(default="", description="empty until this version can serve")


class Excluded(Record):
    """A measured episode that is not ranked, and why."""

    episode: int = Field(ge=0)
    reason: str


class FrontierDocument(Record):
    """``pareto_frontier.json``: a pure function of the study's recorded episodes."""

    study: str
    objectives: tuple[ObjectiveInfo, ...]
    baseline: Objectives | None
    reference_point: Objectives | None = Field(description="fixed from the baseline before the search")
    noise: dict[str, float] = Field(
        default_factory=dict, description="epsilon by objective, from the baseline's spread"
    )
    hypervolume: float = Field(ge=0, description="of the normalised objectives, in [0, 1]")
    solutions: tuple[Solution, ...] = ()
    unreported: tuple[Excluded, ...] = Field(
        default=(), description="stand on the search items and were never asked the report items, so not ranked"
    )
    warnings: tuple[str, ...] = Field(
        default=(), description="what limits the figures, such as a task too small to split"
    )
    excluded: tuple[Excluded, ...] = Field(
        default=(), description="measured, but not comparable with the baseline: another environment, other items"
    )


class EpisodeResults(Record):
    """``episode_NNN/results.json``."""

    episode: int
    status: str
    error: str | None = None
    strategy: str
    rationale: str = ""
    source: str = ""
    expected: Expected = Field(default_factory=dict, description="what the planner expected of it")
    fallback: str = Field(default="", description="why another planner than the chosen one decided; empty: it did not")
    decisions: tuple[str, ...] = Field(default=(), description="what became of stages with a condition")
    screening: tuple[RungReading, ...] = Field(
        default=(), description="what each rung said before it was measured in full"
    )
    objectives: Objectives | None = Field(default=None, description="accuracy on the search items")
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    reward: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="utility and hypervolume added after the episodes before it, less penalties for broken "
        "constraints; -1 for a failure, None for the baseline and where the baseline was not measured",
    )
    report_accuracy: Estimate | None = Field(default=None, description="on the report items, where they were asked")
    report_scores: dict[str, float] = Field(default_factory=dict)
    benchmark_scores: dict[str, float] = Field(default_factory=dict)
    perplexity: float | None = None
    throughput_tokens_per_s: float | None = None
    ttft_ms: float | None = None
    energy_joules: float | None = Field(default=None, description="one request of the fixed workload")
    energy_source: Literal["measured", "estimated"] = "estimated"
    is_pareto_optimal: bool = False
    sample_count: int = 0
    environment: Environment | None = None
    timings: dict[str, float] = Field(default_factory=dict)


class PlannerUsage(Record):
    """What the planner's language model cost; all zero for a search planner."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = Field(
        default=0.0, description="list price; None where no call's price is known, the calls of unknown price left out"
    )
    fallbacks: int = Field(default=0, description="episodes that the search decided because no usable answer came")


class ExpectationError(Record):
    """How far what a planner expected was from what was measured, in the objective's unit."""

    maker: str = Field(description="'language model' or 'search'")
    objective: str
    episodes: int = Field(ge=1)
    mean_error: float = Field(description="expected minus measured: above 0, it expects too much")
    mean_absolute_error: float = Field(ge=0)
    within: float = Field(ge=0, le=1, description="share measured inside the 95 % interval that was given")


class SourceSummary(Record):
    """What came of the episodes of one source."""

    source: str
    episodes: int = Field(ge=1)
    succeeded: int = Field(ge=0)
    hypervolume_gain: float = Field(ge=0, description="added by its episodes in all, on the search items")


class FinalResults(Record):
    """``final_results.json``."""

    study: str
    model: str
    dataset: str
    planner: str
    seed: int
    episodes_run: int
    episodes_by_status: dict[str, int]
    termination_reason: str | None = Field(description="None while the study can still go on")
    baseline: Objectives | None
    solutions: tuple[Solution, ...]
    hypervolume_by_episode: tuple[float, ...]
    wall_seconds: float
    energy_kwh: float
    co2_grams: float
    energy_source: Literal["measured", "estimated"]
    planner_usage: PlannerUsage = Field(default_factory=PlannerUsage)
    planner_note: str = Field(default="", description="what the language model did in this study, in one line")
    planner_sources: tuple[SourceSummary, ...] = Field(default=(), description="by what made the strategies")
    expectation_errors: tuple[ExpectationError, ...] = Field(
        default=(), description="by maker and objective; empty where nothing was expected"
    )
    environment: Environment | None = None
