"""What a planner is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from agentic_compression.records import Candidate, EpisodeRecord, Proposal, SearchSpace, Situation, Strategy

__all__ = ["ConsultingPlanner", "Optimizer", "Planner"]


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


@runtime_checkable
class Optimizer(Planner, Protocol):
    """A planner that can say which strategies it would try next, and what it expects of them."""

    def candidates(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
        limit: int = 8,
    ) -> tuple[Candidate, ...]:
        """Its best legal and untried strategies, the best first.

        Args:
            space: the methods on offer and the number of stages.
            history: everything recorded of the study, in any order, failures included.
            seed: of the study; the same arguments give the same candidates.
            situation: what it may know besides.
            limit: how many at most.

        Returns:
            Distinct strategies in canonical form; none when all were tried.
        """
        ...


@runtime_checkable
class ConsultingPlanner(Planner, Protocol):
    """A planner that asks a language model. Asking costs, and gives another answer every time.

    It is therefore told at once what is running and asked once an episode; the plan that comes of it is kept with the
    episode's claim, so that an episode carried out again is the same episode.
    """

    def propose_beside(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
        in_flight: Sequence[Strategy] = (),
    ) -> Proposal:
        """The next strategy, none of those that were tried or are running; or the end of the search.

        Args:
            space: the methods on offer and the number of stages.
            history: everything recorded of the study, in any order, failures included.
            seed: of the study.
            situation: what it may know besides.
            in_flight: strategies that other processes are running now.
        """
        ...
