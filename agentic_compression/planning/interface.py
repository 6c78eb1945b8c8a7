"""What a planner is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace, Situation

__all__ = ["Planner"]


class Planner(Protocol):
    """Proposes the next strategy from what has been measured.

    A planner is deterministic given its arguments: files it keeps make it faster or inspectable, never different.
    It proposes only legal strategies (``space.problem_with`` is None) that no record of the history has tried, and
    ends the search with ``search_space_exhausted`` when there is none left.

    What a planner does may depend on noisy measurements (latency, memory, energy) only where it says so: two runs of
    one study then differ in what they try.
    """

    name: str

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """The next strategy, or the end of the search.

        Args:
            space: the methods on offer and the number of stages.
            history: everything recorded of the study, in any order, failures included.
            seed: of the study; the same arguments give the same proposal.
            situation: the model, the wish, what is left to spend, what memory recalls; searches that use none of it
                leave it aside.
        """
        ...
