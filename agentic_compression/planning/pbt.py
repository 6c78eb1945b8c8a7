"""Population based training of strategies (Jaderberg et al. 2017): exploit what is fit, explore around it.

The population has a fixed number of places. Recorded episodes go round them: the first fill them, and every later one
is the child of the place whose turn it was. It takes the place when it is at least as fit as the member there, so a
place holds the last improvement of its line. The next episode is made for the place whose turn comes:

* *exploit*: when its member is in the bottom quantile, a member drawn from the top quantile is copied over it;
* *explore*: one or two parameters go to a neighbouring value on the grid, or a stage is added, removed or replaced.

Fitness is the reward of ``planning.reward`` that a member would have if it came last, so that early members, which met
an empty frontier, have no advantage. Training goes on where PBT's networks keep their weights; a compressed model keeps
none, so every child is made from the uncompressed model, and every turn explores.

Nothing is kept: the population is read off the history each time, and the draws are fixed by the seed and the number of
recorded episodes. A study that was killed and goes on has the same population.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from agentic_compression.planning.grid import StrategyGrid, canonical, tried_keys
from agentic_compression.planning.moves import is_legal, parameter_moves, stage_moves
from agentic_compression.planning.reward import present_rewards
from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace, Situation, Strategy

__all__ = ["PLACES", "Member", "PbtPlanner", "pbt_planner", "population"]

PLACES = 8
"""Members of the population, as many as there are seed strategies."""

_QUANTILE = 0.25
_STAGE_MOVE = 0.4  # probability that the methods change rather than their parameters
_ATTEMPTS = 24  # children looked at; each is one more step away than the one before it every few attempts
_WIDEN = 6


@dataclass(frozen=True)
class Member:
    """Who holds a place of the population.

    Args:
        place: its number, from 0.
        episode: that measured it.
        strategy: in canonical form.
        fitness: the reward it would have if it came last.
    """

    place: int
    episode: int
    strategy: Strategy
    fitness: float


class PbtPlanner:
    """A population read off the history; its next child."""

    name = "pbt"

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """The child of the place whose turn it is; see ``Planner``."""
        grid, tried = StrategyGrid(space), tried_keys(space, history)
        draw = random.Random(f"pbt {seed} {len(history)}")  # noqa: S311 - a search, not a secret
        members = population(space, history, situation)
        turn = len({record.episode for record in history if record.episode > 0}) % PLACES
        if len(members) >= 2:
            parent, how = _exploit(members, turn, draw)
            child = _explore(grid, parent.strategy, tried, draw)
            if child is not None:
                return Proposal(strategy=child, source=self.name, rationale=f"pbt: place {turn + 1} {how}")
        drawn = grid.draw_untried(tried, (seed, len(history)))
        if drawn is None:
            reason = f"all {grid.count} strategies were tried"
            return Proposal(end="search_space_exhausted", source=self.name, rationale=reason)
        few = "the population is too small to learn from" if len(members) < 2 else "everything near was tried"
        return Proposal(strategy=drawn, source=self.name, rationale=f"pbt: drawn at random, {few}")


def pbt_planner(storage_path: Path | None = None) -> PbtPlanner:
    """The planner; it keeps no file."""
    return PbtPlanner()


def population(
    space: SearchSpace, history: Sequence[EpisodeRecord], situation: Situation | None = None
) -> tuple[Member, ...]:
    """The members that a history leaves, by place; places that only ever failed are empty.

    Args:
        space: the methods on offer; episodes with others keep their turn and leave no member.
        history: everything recorded, in any order.
        situation: for the study's constraints.
    """
    fitness = present_rewards(history, situation.constraints if situation else ())
    held: dict[int, Member] = {}
    compressed = {record.episode: record for record in history if record.episode > 0}
    for turn, episode in enumerate(sorted(compressed)):
        record, place = compressed[episode], turn % PLACES
        strategy = canonical(space, record.strategy)
        if record.status != "succeeded" or not is_legal(space, strategy):
            continue
        child = Member(place, episode, strategy, fitness.get(episode, 0.0))
        if place not in held or child.fitness >= held[place].fitness:
            held[place] = child
    return tuple(held[place] for place in sorted(held))


def _exploit(members: Sequence[Member], turn: int, draw: random.Random) -> tuple[Member, str]:
    """Whom the child of a place is made from."""
    ranked = sorted(members, key=lambda member: (-member.fitness, member.episode))
    few = max(1, ceil(_QUANTILE * len(ranked)))
    top, bottom = ranked[:few], ranked[-few:]
    own = next((member for member in members if member.place == turn), None)
    if own is not None and own not in bottom:
        return own, f"explores around its own episode {own.episode} (fitness {own.fitness:.2f})"
    best = draw.choice(top)
    lost = "was empty" if own is None else f"had fitness {own.fitness:.2f}"
    return best, f"{lost} and takes over episode {best.episode} (fitness {best.fitness:.2f}), changed"


def _explore(grid: StrategyGrid, parent: Strategy, tried: frozenset[str], draw: random.Random) -> Strategy | None:
    """An untried strategy a few steps away."""
    for attempt in range(_ATTEMPTS):
        child = parent
        for _ in range(1 + draw.randrange(2) + attempt // _WIDEN):
            child = _step(grid, child, draw)
        if child.key not in tried and not child.is_baseline:
            return child
    return None


def _step(grid: StrategyGrid, strategy: Strategy, draw: random.Random) -> Strategy:
    by_stage = draw.random() < _STAGE_MOVE
    moves = stage_moves(grid, strategy, draw) if by_stage else parameter_moves(grid.space, strategy)
    if not moves:
        moves = parameter_moves(grid.space, strategy) if by_stage else stage_moves(grid, strategy, draw)
    return draw.choice(moves) if moves else strategy
