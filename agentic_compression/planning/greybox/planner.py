"""The planner: every untried strategy's expected gain in hypervolume, and the one with the most.

It reads all five objectives of what was measured. Latency, memory and energy are noisy, so two runs of one study may
differ in what they try.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agentic_compression.planning.greybox.pool import pool_of
from agentic_compression.planning.greybox.posterior import Posterior, encoder_of
from agentic_compression.planning.grid import StrategyGrid, canonical, tried_keys
from agentic_compression.records import (
    Candidate,
    EpisodeRecord,
    Expected,
    Proposal,
    SearchSpace,
    Situation,
    Strategy,
)

__all__ = ["GreyboxPlanner", "greybox_planner"]

_ALIKE = 2
_LOOKED_AT = 16
_IMPATIENCE = 0.3
"""Without a limit on time, what takes ten times as long must promise twice the gain."""


class GreyboxPlanner:
    """Beliefs about methods, made precise by what was measured; then expected hypervolume improvement."""

    name = "greybox"

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """The untried strategy with the largest expected gain; see ``Planner``."""
        found = self.candidates(space, history, seed, situation, limit=1)
        if not found:
            grid = StrategyGrid(space)
            reason = f"all {grid.count} strategies were tried"
            return Proposal(end="search_space_exhausted", source=self.name, rationale=reason)
        best = found[0]
        return Proposal(strategy=best.strategy, source=self.name, rationale=_rationale(best), expected=best.expected)

    def candidates(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
        limit: int = 8,
    ) -> tuple[Candidate, ...]:
        """Untried strategies with the largest expected gains, and what is expected of them.

        Args:
            space: the methods on offer.
            history: everything recorded of the study.
            seed: of the study; draws the strategies looked at where there are too many to look at all.
            situation: shapes of the model, constraints, experiences of earlier studies.
            limit: how many.
        """
        situation = situation or Situation()
        history = sorted(history, key=lambda record: record.episode)
        tried = tried_keys(space, history)
        encoder = encoder_of(space, situation)
        pool, design = pool_of(encoder, history, tried, seed)
        if not pool:
            return ()
        beliefs = Posterior(encoder, history, situation)
        forecast = beliefs.forecast(design)
        seconds = beliefs.seconds(design)
        limited = situation.seconds_left is not None or situation.co2_left_grams is not None
        patience = (seconds / seconds.min()) ** -(1.0 if limited else _IMPATIENCE)
        worth = beliefs.gains(forecast, pool, patience, best=_LOOKED_AT * limit)
        order = sorted(range(len(pool)), key=lambda i: (-worth[i], -forecast.accuracy[i]))
        return tuple(
            Candidate(
                strategy=pool[i],
                expected=forecast.expected(i),
                gain=float(worth[i] / patience[i]),
                seconds=float(seconds[i]),
            )
            for i in _varied(order, pool, limit)
        )

    def forecast(
        self,
        space: SearchSpace,
        strategies: Sequence[Strategy],
        history: Sequence[EpisodeRecord],
        situation: Situation | None = None,
    ) -> tuple[Expected, ...]:
        """What is expected of given strategies, in their order.

        Args:
            space: the methods on offer.
            strategies: of this space.
            history: everything recorded of the study.
            situation: see ``candidates``.
        """
        situation = situation or Situation()
        encoder = encoder_of(space, situation)
        beliefs = Posterior(encoder, sorted(history, key=lambda record: record.episode), situation)
        found = beliefs.forecast(encoder.design([canonical(space, strategy) for strategy in strategies]))
        return tuple(found.expected(index) for index in range(len(strategies)))


def greybox_planner(storage_path: Path | None = None) -> GreyboxPlanner:
    """The planner; it keeps no file."""
    return GreyboxPlanner()


def _varied(order: Sequence[int], pool: Sequence[Strategy], limit: int) -> list[int]:
    """The first in order, no more than two of the same methods as long as there are others."""
    chosen: list[int] = []
    alike: dict[tuple[str, ...], int] = {}
    for place in order:
        methods = tuple(stage.method for stage in pool[place].stages)
        alike[methods] = alike.get(methods, 0) + 1
        if alike[methods] <= _ALIKE:
            chosen.append(place)
        if len(chosen) == limit:
            return chosen
    return [*chosen, *(place for place in order if place not in set(chosen))][:limit]


def _rationale(best: Candidate) -> str:
    accuracy, size = best.expected["accuracy"], best.expected["model_size_gb"]
    return (
        f"greybox: expected to add {best.gain:.2%} of the reference box; accuracy {accuracy[0]:.3f} "
        f"[{accuracy[1]:.3f}, {accuracy[2]:.3f}], {size[0]:.4g} GB"
    )
