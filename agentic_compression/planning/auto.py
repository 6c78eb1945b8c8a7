"""What ``auto`` plans with when no language model is asked: chosen by how much was tried and how large the space is.

*greybox* is the rule: it starts from what is known of methods, and led through a recorded search space it came furthest
of all searches with 40 episodes. *pbt* takes over after ``LONG`` episodes in a space of more than ``WHOLE`` strategies.
The grey box can look at every strategy of a smaller space, however many episodes there are; of a larger one it looks at
a fresh random draw each time and takes no small steps from what it has found, and the work of one proposal rises with
the episodes. PBT takes small steps only, at a cost that hardly rises. A study whose budget ends before never meets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentic_compression.planning.grid import StrategyGrid
from agentic_compression.planning.interface import Planner
from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace, Situation

__all__ = ["LONG", "WHOLE", "AutoSearch", "search_for"]

LONG = 1000
"""Recorded episodes after which a search is long."""

WHOLE = 3000
"""Strategies that the grey box looks at one by one."""


def search_for(space: SearchSpace, episodes: int) -> str:
    """The name of the search that plans the next episode.

    Args:
        space: the methods on offer.
        episodes: recorded so far, whatever came of them.
    """
    return "pbt" if episodes > LONG and StrategyGrid(space).count > WHOLE else "greybox"


class AutoSearch:
    """The search that ``search_for`` names, chosen anew for every episode.

    Args:
        load: gives a planner by its name.
    """

    name = "auto"

    def __init__(self, load: Callable[[str], Planner]) -> None:
        self._load = load

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """What the chosen search proposes, under that search's name; see ``Planner``."""
        return self._load(search_for(space, len(history))).propose(space, history, seed, situation)
