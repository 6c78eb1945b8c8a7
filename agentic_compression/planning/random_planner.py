"""Random search: uniform over the legal strategies that were not tried. The baseline every planner must beat."""

from __future__ import annotations

from collections.abc import Sequence

from agentic_compression.planning.grid import StrategyGrid, tried_keys
from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace, Situation

__all__ = ["RandomPlanner"]


class RandomPlanner:
    """Uniform, seeded, without repetition; it learns nothing from results."""

    name = "random"

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """A uniformly drawn untried strategy; see ``Planner``."""
        grid = StrategyGrid(space)
        strategy = grid.draw_untried(tried_keys(space, history), (seed, len(history)))
        if strategy is None:
            return Proposal(
                end="search_space_exhausted", source=self.name, rationale=f"all {grid.count} strategies were tried"
            )
        rationale = f"random: drawn uniformly from {grid.count} legal strategies, blind to the results"
        return Proposal(strategy=strategy, source=self.name, rationale=rationale)
