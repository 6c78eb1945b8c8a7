"""The next episode of a study: the baseline, then the seeds, then the planner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentic_compression.planning.grid import StrategyGrid, canonical, tried_keys
from agentic_compression.planning.interface import ConsultingPlanner
from agentic_compression.planning.registry import select_planner
from agentic_compression.planning.seeds import seed_strategies
from agentic_compression.records import BASELINE, EpisodeRecord, Proposal, SearchSpace, Situation, Strategy
from agentic_compression.settings import get_settings

__all__ = ["propose_episode"]

_REASKS = 4


def propose_episode(
    planner_name: str,
    space: SearchSpace,
    history: Sequence[EpisodeRecord],
    seed: int,
    storage_path: Path | None = None,
    in_flight: Sequence[Strategy] = (),
    situation: Situation | None = None,
) -> Proposal:
    """What the next episode tries. Deterministic given its arguments, whatever ``storage_path`` holds.

    Planners that ask a language model are the exception: they are asked once, and not again for what is running.

    Episode 0 is the baseline (source ``baseline``), whatever its outcome it is tried once; then come the seed
    strategies that are untried, the same for every planner (source ``seed``); then the planner's own.

    Args:
        planner_name: as in a study file; ``auto`` takes what this machine can use.
        space: the methods on offer.
        history: everything recorded of the study, in any order.
        seed: of the study.
        storage_path: journal file of the planner; in memory when None.
        in_flight: strategies that other processes are running now; they are not proposed again.
        situation: what the planner may know besides.

    Returns:
        A legal strategy that is neither recorded nor in flight, or the end ``search_space_exhausted``.

    Raises:
        ConfigurationError: for an unknown planner, or a language model's planner without a key.
        UnavailableError: for a planner that is not built yet.
    """
    planner, _ = select_planner(planner_name, get_settings().openai_api_key is not None, storage_path)
    busy = {canonical(space, strategy).key for strategy in in_flight}
    if BASELINE.key not in busy and not any(record.episode == 0 for record in history):
        return Proposal(strategy=BASELINE, source="baseline", rationale="baseline: the uncompressed model, measured")
    taken = tried_keys(space, history) | busy
    for strategy, reason in seed_strategies(space):
        if strategy.key not in taken:
            return Proposal(strategy=strategy, source="seed", rationale=f"seed strategy: {reason}")
    asks = 1 if isinstance(planner, ConsultingPlanner) else _REASKS
    for attempt in range(asks):
        if isinstance(planner, ConsultingPlanner):
            proposal = planner.propose_beside(space, history, seed, situation, in_flight)
        else:
            proposal = planner.propose(space, history, seed + attempt, situation)
        if proposal.strategy is None or proposal.strategy.key not in busy:
            return proposal
    grid = StrategyGrid(space)
    drawn = grid.draw_untried(taken, (seed, len(history), len(busy)))
    if drawn is None:
        reason = f"all {grid.count} strategies were tried or are running"
        return Proposal(end="search_space_exhausted", source=planner.name, rationale=reason)
    rationale = f"{planner.name}: its suggestions are running already, so an untried strategy was drawn"
    return Proposal(strategy=drawn, source=planner.name, rationale=rationale)
