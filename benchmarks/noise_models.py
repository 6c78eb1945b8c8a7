"""Ways in which the answers of two equally good models differ, and planted drops: what the statistics are tested on.

Every model draws one paired comparison. ``drop`` plants a true difference where the model allows one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from agentic_compression.evaluation.paired import Numbers, PairedUnits

__all__ = ["NOISE_MODELS", "Draw", "clustered", "documents", "flipped", "graded", "reseeded", "two_tasks"]

Draw = tuple[list[PairedUnits], list[float]]
"""Units and weight of every task."""


def itself(generator: np.random.Generator) -> Draw:
    """A model beside itself."""
    return [_items(np.zeros(600))], [1.0]


def reseeded(generator: np.random.Generator, items: int = 600) -> Draw:
    """Two runs that toss each item's own coin; difficulties are Beta(0.5, 0.5), so most coins are nearly decided."""
    chance = generator.beta(0.5, 0.5, items)
    first, second = generator.random((2, items)) < chance
    return [_items(second.astype(float) - first)], [1.0]


def flipped(generator: np.random.Generator, items: int, discordance: float, drop: float = 0.0) -> Draw:
    """Each answer changes with the probability ``discordance``; losses are ``drop`` more frequent than gains."""
    kinds = generator.random(items)
    lost = kinds < (discordance + drop) / 2
    changed = kinds < discordance
    return [_items(np.where(lost, -1.0, np.where(changed, 1.0, 0.0)))], [1.0]


def clustered(generator: np.random.Generator, clusters: int = 120, each: int = 5, share: float = 0.3) -> Draw:
    """Items in groups (questions on one passage) that fall over together.

    An answer is right when its margin is above 0. Both runs have the same margins but for a small noise, ``share`` of
    whose variance all items of a group have in common: the items are not independent, as the statistics assume.
    """
    margin = generator.normal(1.0, 1.5, (clusters, each))
    runs = []
    for _ in range(2):
        together, alone = generator.normal(size=(clusters, 1)), generator.normal(size=(clusters, each))
        noise = np.sqrt(share) * together + np.sqrt(1 - share) * alone
        runs.append(margin + 0.3 * noise > 0)
    return [_items((runs[1].astype(float) - runs[0]).ravel())], [1.0]


def documents(generator: np.random.Generator, count: int = 60) -> Draw:
    """Tokens of documents of 20 to 200 tokens; how many answers a document gains or loses is its own trait."""
    sizes = generator.integers(20, 200, count).astype(float)
    leaning = np.clip(generator.normal(0.0, 0.15, count), -0.5, 0.5)
    changed = generator.binomial(sizes.astype(int), 0.1).astype(float)
    gained = generator.binomial(changed.astype(int), 0.5 + leaning).astype(float)
    return [PairedUnits(differences=2.0 * gained - changed, sizes=sizes)], [1.0]


def graded(generator: np.random.Generator, items: int = 200) -> Draw:
    """Scores between 0 and 1 (an F1 of words): most stay, some move a little, few a lot."""
    before = generator.beta(2.0, 1.0, items)
    moved = generator.random(items) < 0.3
    after = np.where(moved, generator.beta(2.0, 1.0, items), before)
    swap = generator.random(items) < 0.5
    return [_items(np.where(swap, before - after, after - before))], [1.0]


def two_tasks(generator: np.random.Generator) -> Draw:
    """Two tasks of unequal length and weight, both with few changed answers."""
    first, _ = flipped(generator, 150, 0.04)
    second, _ = flipped(generator, 600, 0.02)
    return [*first, *second], [1.0, 3.0]


NOISE_MODELS: dict[str, Callable[[np.random.Generator], Draw]] = {
    "itself": itself,
    "another seed, every item its own coin": reseeded,
    "0.2 % of 600 answers change": partial(flipped, items=600, discordance=0.002),
    "1 % of 600 answers change": partial(flipped, items=600, discordance=0.01),
    "3 % of 200 answers change": partial(flipped, items=200, discordance=0.03),
    "10 % of 600 answers change": partial(flipped, items=600, discordance=0.10),
    "30 % of 50 answers change": partial(flipped, items=50, discordance=0.30),
    "600 items in groups of 5 that move together": clustered,
    "60 documents, tokens dependent": documents,
    "12 documents, tokens dependent": partial(documents, count=12),
    "200 graded answers": graded,
    "two tasks, weights 1 and 3": two_tasks,
}


def _items(differences: Numbers) -> PairedUnits:
    return PairedUnits(differences=differences, sizes=np.ones(len(differences)))
