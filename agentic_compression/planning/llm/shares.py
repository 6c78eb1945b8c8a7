"""How much of a study a language model's own strategies may take: Thompson sampling over two sources.

The reward of an episode is the hypervolume that it added over the largest addition of any episode of both sources, so
it lies in [0, 1]; one that failed gets 0. Each source keeps a Beta distribution over its mean reward, with a uniform
prior; a reward r counts as r of a success and 1 - r of a failure (Agrawal and Goyal 2012). Older episodes count less,
because the same strategy adds less the later it comes.

Measured hypervolume is noisy, so two runs of one study may decide otherwise; the same history and seed never do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agentic_compression.planning.llm.progress import hypervolume_gains
from agentic_compression.planning.llm.review import HYBRID_LLM, HYBRID_OPTIMIZER
from agentic_compression.records import EpisodeRecord

__all__ = ["Standing", "standing"]

_DISCOUNT = 0.95
_LOST = 0.05  # the model is not asked while its strategies are better with less than this probability
_LEAST_TRIED = 3
_GRID = 2000


@dataclass(frozen=True)
class Standing:
    """What the sources' results allow in this episode.

    Args:
        probability: that the model's own strategies gain more on average.
        share: of the episodes, the most that may be its own.
        may_override: whether this one may be.
        asked: whether the model is asked at all.
        note: the same in words.
    """

    probability: float
    share: float
    may_override: bool
    asked: bool
    note: str


def standing(history: Sequence[EpisodeRecord], seed: int, most: float) -> Standing:
    """Where the two sources stand; the same for the same history and seed.

    Args:
        history: everything recorded, in any order.
        seed: of the study.
        most: largest share of the episodes for the model's own strategies, in [0, 1].
    """
    rewards = _rewards(history)
    model, optimizer = _beta(rewards, HYBRID_LLM), _beta(rewards, HYBRID_OPTIMIZER)
    own = sum(source == HYBRID_LLM for source, _ in rewards)
    probability = _probability_of_more(model, optimizer)
    share = most * min(1.0, 2 * probability)
    if own >= _LEAST_TRIED and probability < _LOST:
        note = f"the language model has lost its share: P(its {own} gain more) is {probability:.2f}"
        return Standing(probability, 0.0, may_override=False, asked=False, note=note)
    draw = random.Random(f"hybrid {seed} {len(history)}")  # noqa: S311 - a search, not a secret
    wins = draw.betavariate(*model) >= draw.betavariate(*optimizer)
    room = own + 1 <= share * (len(rewards) + 1) + 1e-9
    said = "may override" if wins and room else "may only choose: " + ("drawn so" if room else "its share is used up")
    note = f"the language model {said}; {own} of {len(rewards)} were its own, its share is {share:.2f}"
    return Standing(probability, share, may_override=wins and room, asked=True, note=note)


def _rewards(history: Sequence[EpisodeRecord]) -> list[tuple[str, float]]:
    """Source and reward of the episodes of both sources, by rising number."""
    gains = hypervolume_gains(history)
    both = {r.episode: r.source for r in history if r.source in {HYBRID_LLM, HYBRID_OPTIMIZER}}
    largest = max((gains.get(episode, 0.0) for episode in both), default=0.0)
    return [
        (source, gains.get(episode, 0.0) / largest if largest > 0 else 0.0) for episode, source in sorted(both.items())
    ]


def _beta(rewards: Sequence[tuple[str, float]], source: str) -> tuple[float, float]:
    """Parameters of the source's Beta distribution."""
    alpha = beta = 1.0
    for age, (name, reward) in enumerate(reversed(rewards)):
        if name == source:
            weight = _DISCOUNT**age
            alpha, beta = alpha + weight * reward, beta + weight * (1 - reward)
    return alpha, beta


def _probability_of_more(first: tuple[float, float], second: tuple[float, float]) -> float:
    """P(X > Y) of two independent Beta variables, by the midpoint rule."""
    import numpy as np

    middle = (np.arange(_GRID) + 0.5) / _GRID
    densities = []
    for alpha, beta in (first, second):
        logs = (alpha - 1) * np.log(middle) + (beta - 1) * np.log1p(-middle)
        density = np.exp(logs - logs.max())
        densities.append(density / density.sum())
    below = np.cumsum(densities[1]) - 0.5 * densities[1]
    return float((densities[0] * below).sum())
