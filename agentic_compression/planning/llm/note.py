"""What a language model did in a study, in one line for the results."""

from __future__ import annotations

from collections.abc import Sequence

from agentic_compression.planning.llm.review import (
    HYBRID_LLM,
    HYBRID_OPTIMIZER,
    LLM,
    LLM_OPTIMIZER,
    source_summaries,
)
from agentic_compression.planning.llm.shares import standing
from agentic_compression.records import EpisodeRecord, PlannerUsage

__all__ = ["planner_note"]


def planner_note(history: Sequence[EpisodeRecord], usage: PlannerUsage, seed: int, most: float) -> str:
    """Calls, tokens, cost, and what came of both sources; empty where no language model took part.

    Args:
        history: everything recorded of the study.
        usage: of its language model.
        seed: of the study.
        most: largest share of a hybrid study for the model's own strategies.
    """
    counts = {summary.source: summary for summary in source_summaries(history)}
    own = [counts[source] for source in (LLM, HYBRID_LLM) if source in counts]
    searched = [counts[source] for source in (LLM_OPTIMIZER, HYBRID_OPTIMIZER) if source in counts]
    if not usage.calls and not own and not searched:
        return ""
    cost = "price not known" if usage.cost_usd is None else f"{usage.cost_usd:.4f} USD"
    parts = [f"language model: {usage.calls} calls, {usage.prompt_tokens}+{usage.completion_tokens} tokens, {cost}"]
    for name, found in (("its own strategies", own), ("the search's", searched)):
        episodes = sum(summary.episodes for summary in found)
        gain = sum(summary.hypervolume_gain for summary in found)
        parts.append(f"{name}: {episodes} episodes, hypervolume +{gain:.4f}")
    if usage.fallbacks:
        parts.append(f"{usage.fallbacks} decided by the search because no usable answer came")
    if {HYBRID_LLM, HYBRID_OPTIMIZER} & set(counts):
        parts.append(f"next, {standing(history, seed, most).note}")
    return "; ".join(parts)
