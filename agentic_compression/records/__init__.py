"""Frozen records: every arrow between stages. Imports only pydantic and the standard library."""

from agentic_compression.records.dataset import DatasetSpec, DatasetTask, TaskKind, ValidationCheck, ValidationReport
from agentic_compression.records.episode import (
    CompressionOutcome,
    EpisodePlan,
    EpisodeRecord,
    EpisodeStatus,
    EvaluationOutcome,
    Proposal,
    StageTiming,
)
from agentic_compression.records.evaluation import (
    BenchmarkScore,
    CheckpointRef,
    EnergyMeasurement,
    Environment,
    Estimate,
    Evaluation,
    EvaluationSettings,
    LatencyMeasurement,
    MemoryMeasurement,
    Objectives,
    Perplexity,
)
from agentic_compression.records.frontier import (
    EpisodeResults,
    FinalResults,
    FrontierDocument,
    ObjectiveInfo,
    PlannerUsage,
    Solution,
)
from agentic_compression.records.record import Record, content_digest
from agentic_compression.records.space import Category, MethodDescription, Parameter, SearchSpace
from agentic_compression.records.spec import MemoryRequirement, ModelSpec, SizeClass, SpecSource
from agentic_compression.records.strategy import BASELINE, Condition, ParameterValue, Stage, Strategy
from agentic_compression.records.study import PLANNERS, Constraint, StudyConfig, TerminationReason

__all__ = [
    "BASELINE",
    "PLANNERS",
    "BenchmarkScore",
    "Category",
    "CheckpointRef",
    "CompressionOutcome",
    "Condition",
    "Constraint",
    "DatasetSpec",
    "DatasetTask",
    "EnergyMeasurement",
    "Environment",
    "EpisodePlan",
    "EpisodeRecord",
    "EpisodeResults",
    "EpisodeStatus",
    "Estimate",
    "Evaluation",
    "EvaluationOutcome",
    "EvaluationSettings",
    "FinalResults",
    "FrontierDocument",
    "LatencyMeasurement",
    "MemoryMeasurement",
    "MemoryRequirement",
    "MethodDescription",
    "ModelSpec",
    "ObjectiveInfo",
    "Objectives",
    "Parameter",
    "ParameterValue",
    "Perplexity",
    "PlannerUsage",
    "Proposal",
    "Record",
    "SearchSpace",
    "SizeClass",
    "Solution",
    "SpecSource",
    "Stage",
    "StageTiming",
    "Strategy",
    "StudyConfig",
    "TaskKind",
    "TerminationReason",
    "ValidationCheck",
    "ValidationReport",
    "content_digest",
]
