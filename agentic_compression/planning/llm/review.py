"""What asking a language model cost and was worth: usage, errors of what was expected, gains by source."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from agentic_compression.planning.llm.progress import hypervolume_gains, measured
from agentic_compression.records import (
    EpisodeRecord,
    ExpectationError,
    Objectives,
    PlannerCall,
    PlannerUsage,
    SourceSummary,
)

__all__ = [
    "HYBRID_LLM",
    "HYBRID_OPTIMIZER",
    "LANGUAGE_MODEL",
    "LLM",
    "LLM_OPTIMIZER",
    "SEARCH",
    "expectation_errors",
    "maker_of",
    "planner_usage",
    "source_summaries",
]

LANGUAGE_MODEL, SEARCH = "language model", "search"
LLM, LLM_OPTIMIZER = "llm", "llm:optimizer"
HYBRID_LLM, HYBRID_OPTIMIZER = "hybrid:llm", "hybrid:optimizer"
"""Sources: a strategy of the model's own, or one of the optimizer's, whoever picked it."""


def maker_of(record: EpisodeRecord) -> str:
    """Who said what to expect of an episode: the model where it decided, otherwise the search."""
    decided = bool(record.calls) and record.calls[-1].status == "ok" and not record.fallback
    return LANGUAGE_MODEL if decided else SEARCH


def expectation_errors(history: Sequence[EpisodeRecord]) -> tuple[ExpectationError, ...]:
    """Expected against measured, by maker and objective, over the succeeded episodes of which something was expected.

    Accuracy is that of the search items: what a planner expects is about what it can see.
    """
    pairs: defaultdict[tuple[str, str], list[tuple[float, bool]]] = defaultdict(list)
    for record in measured(history):
        for objective, (value, low, high) in record.expected.items():
            if objective in Objectives.model_fields and math.isfinite(value):
                found = float(getattr(record.objectives, objective))
                pairs[maker_of(record), objective].append((value - found, low <= found <= high))
    order = {name: place for place, name in enumerate(Objectives.model_fields)}
    return tuple(
        ExpectationError(
            maker=maker,
            objective=objective,
            episodes=len(found),
            mean_error=fmean(error for error, _ in found),
            mean_absolute_error=fmean(abs(error) for error, _ in found),
            within=fmean(inside for _, inside in found),
        )
        for (maker, objective), found in sorted(pairs.items(), key=lambda item: (item[0][0], order[item[0][1]]))
    )


def source_summaries(history: Sequence[EpisodeRecord]) -> tuple[SourceSummary, ...]:
    """Episodes and hypervolume gained by source, the baseline left out, in the order in which they first came."""
    gains = hypervolume_gains(history)
    by_source: defaultdict[str, list[EpisodeRecord]] = defaultdict(list)
    for record in sorted(history, key=lambda item: item.episode):
        if record.episode > 0:
            by_source[record.source].append(record)
    return tuple(
        SourceSummary(
            source=source,
            episodes=len(records),
            succeeded=sum(record.status == "succeeded" for record in records),
            hypervolume_gain=sum(gains.get(record.episode, 0.0) for record in records),
        )
        for source, records in by_source.items()
    )


def planner_usage(calls: Sequence[PlannerCall], fallbacks: int = 0) -> PlannerUsage:
    """Totals of the calls of a study.

    Args:
        calls: all of them.
        fallbacks: episodes that another planner decided instead.
    """
    known = [call.cost_usd for call in calls if call.cost_usd is not None]
    return PlannerUsage(
        calls=len(calls),
        prompt_tokens=sum(call.prompt_tokens for call in calls),
        completion_tokens=sum(call.completion_tokens for call in calls),
        cost_usd=sum(known) if known or not calls else None,
        fallbacks=fallbacks,
    )
