"""What a planner is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace

__all__ = ["Planner"]


class Planner(Protocol):
    """Proposes the next strategy from what has been measured.

    A planner is deterministic given its arguments: files it keeps make it faster or inspectable, never different.
    It proposes only legal strategies (``space.problem_with`` is None) that no record of the history has tried, and
    ends the search with ``search_space_exhausted`` when there is none left.

    Planners see the reproducible objectives only: accuracy (up) and model size (down), with seeded work the same on
    every run. Latency, memory and energy are noisy measurements; a planner that read them would propose another
    strategy when the same study is run twice. They decide the frontier, not the search.
    """

    name: str

    def propose(self, space: SearchSpace, history: Sequence[EpisodeRecord], seed: int) -> Proposal:
        """The next strategy, or the end of the search.

        Args:
            space: the methods on offer and the number of stages.
            history: everything recorded of the study, in any order, failures included.
            seed: of the study; the same arguments give the same proposal.
        """
        ...
