"""What the optimizer would try next, whatever kind of planner it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentic_compression.planning.grid import canonical, tried_keys
from agentic_compression.planning.interface import Optimizer, Planner
from agentic_compression.records import Candidate, EpisodeRecord, Proposal, SearchSpace, Situation, Strategy

__all__ = ["Moment", "OneCandidate", "open_candidates"]

_LIMIT, _ALIKE = 8, 2
_SPREAD = 4  # times as many are looked at, for what is unlike
_REASKS = 4


@dataclass(frozen=True)
class Moment:
    """Where a study stands when something is to be proposed.

    Args:
        space: the methods on offer.
        history: everything recorded.
        seed: of the study.
        situation: what may be known besides.
        in_flight: strategies that other processes are running now.
    """

    space: SearchSpace
    history: Sequence[EpisodeRecord]
    seed: int
    situation: Situation | None = None
    in_flight: Sequence[Strategy] = field(default=())

    @property
    def taken(self) -> dict[str, str]:
        """Keys of canonical forms that are not to be proposed, with what to say of them."""
        running = {canonical(self.space, strategy).key: "running now" for strategy in self.in_flight}
        tried = {
            canonical(self.space, record.strategy).key: f"tried already, in episode {record.episode}"
            for record in self.history
        }
        return running | tried


class OneCandidate:
    """Any planner as an optimizer: its proposal is its only candidate, and it expects nothing.

    Args:
        planner: the planner.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner, self.name = planner, planner.name

    def propose(
        self, space: SearchSpace, history: Sequence[EpisodeRecord], seed: int, situation: Situation | None = None
    ) -> Proposal:
        """The planner's own proposal."""
        return self._planner.propose(space, history, seed, situation)

    def candidates(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
        limit: int = 8,
    ) -> tuple[Candidate, ...]:
        """The strategy of its proposal; none at the end of the search."""
        strategy = self.propose(space, history, seed, situation).strategy
        return (Candidate(strategy=strategy, gain=0.0),) if strategy is not None and limit > 0 else ()


def open_candidates(optimizer: Optimizer, moment: Moment) -> tuple[Candidate, ...]:
    """The optimizer's best strategies that are neither tried nor running, in canonical form, the best first.

    Of strategies with the same methods in the same order no more than a few, as long as there are others.
    Asked again with other seeds while everything it names is running.
    """
    space, busy = moment.space, {canonical(moment.space, strategy).key for strategy in moment.in_flight}
    closed = busy | tried_keys(space, moment.history)
    for attempt in range(_REASKS if busy else 1):
        limit = _LIMIT * _SPREAD + len(busy)
        named = optimizer.candidates(space, moment.history, moment.seed + attempt, moment.situation, limit)
        found: dict[str, Candidate] = {}
        for item in named:
            plain = canonical(space, item.strategy)
            if plain.key not in closed and not plain.is_baseline and space.problem_with(plain) is None:
                found.setdefault(plain.key, item.model_copy(update={"strategy": plain}))
        if found:
            return _varied(tuple(found.values()))[:_LIMIT]
    return ()


def _varied(found: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    """The same with those behind that only set the methods of better ones otherwise: alike, they leave no choice."""
    seen: Counter[tuple[str, ...]] = Counter()
    first: list[Candidate] = []
    behind: list[Candidate] = []
    for item in found:
        methods = tuple(stage.method for stage in item.strategy.stages)
        (first if seen[methods] < _ALIKE else behind).append(item)
        seen[methods] += 1
    return (*first, *behind)
