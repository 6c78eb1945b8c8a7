"""The Pareto frontier of a study and the files a user's scripts may read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.evaluation import Environment, Objectives
from agentic_compression.records.record import Record

__all__ = ["EpisodeResults", "FinalResults", "FrontierDocument", "ObjectiveInfo", "PlannerUsage", "Solution"]


class ObjectiveInfo(Record):
    """Name, direction and unit of an objective."""

    name: str
    direction: Literal["maximize", "minimize"]
    unit: str


class Solution(Record):
    """One non-dominated episode."""

    episode: int
    strategy: str = Field(description="label, as 'acf compress --strategy' reads it")
    objectives: Objectives
    intervals: dict[str, tuple[float, float]]
    checkpoint: str | None
    registry_version: str | None = None
    dominates: tuple[int, ...] = Field(default=(), description="episodes this one dominates")
    meets_constraints: bool = True
    is_knee: bool = False
    rationale: str = ""
    rebuild_command: str = ""
    serve_command: str = Field(default="", description="empty until this version can serve")


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


class EpisodeResults(Record):
    """``episode_NNN/results.json``."""

    episode: int
    status: str
    error: str | None = None
    strategy: str
    rationale: str = ""
    source: str = ""
    decisions: tuple[str, ...] = Field(default=(), description="what became of stages with a condition")
    objectives: Objectives | None = None
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
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
    cost_usd: float = 0.0
    fallbacks: int = 0


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
    environment: Environment | None = None
