"""Which strategies the planner looks at: all of a small space; of a large one a coarse grid and what is near the best.

A real space has tens of millions of strategies, most of which differ in what hardly matters (damping, sampling). The
coarse grid varies the parameters that decide (bits, groups, sparsity, rank, steps) at a few values each and leaves the
others at their defaults; the neighbours of what stands on the frontier then move one parameter at a time, any of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

from agentic_compression.pareto import loss_rows
from agentic_compression.planning.greybox.costs import Shares, size_ratio
from agentic_compression.planning.greybox.features import Columns, Design
from agentic_compression.planning.grid import StrategyGrid, canonical, parameter_values
from agentic_compression.planning.moves import is_legal, parameter_moves
from agentic_compression.records import (
    EpisodeRecord,
    MethodDescription,
    Parameter,
    ParameterValue,
    SearchSpace,
    Strategy,
)

__all__ = ["Encoder", "coarse", "neighbours", "pool_of"]

LARGEST = 3000
"""Strategies of a space, or of its coarse grid, that are looked at."""

_NEIGHBOURS = 400
_VALUES = 4
_DECIDING = frozenset(
    {"bits", "target_bits", "type", "group_size", "sparsity", "pattern", "share", "rank_ratio", "rank", "steps"}
)


class Encoder:
    """Strategies of one space and model as a design."""

    def __init__(self, space: SearchSpace, shares: Shares, sources: tuple[tuple[str, float], ...] = ()) -> None:
        self.space, self.shares, self.columns = space, shares, Columns(space, sources)

    def design(self, strategies: Sequence[Strategy], sources: Sequence[str] = ()) -> Design:
        """Of strategies in canonical form, and what models they were measured on; see ``Columns.design``."""
        sizes = [math.log(max(1e-3, size_ratio(strategy, self.shares))) for strategy in strategies]
        return self.columns.design(strategies, sizes, sources)


def pool_of(
    encoder: Encoder, history: Sequence[EpisodeRecord], tried: frozenset[str], seed: int
) -> tuple[list[Strategy], Design]:
    """Untried strategies worth looking at, in canonical form, and their design.

    Args:
        encoder: of the space.
        history: whose non-dominated strategies have their neighbours looked at.
        tried: keys that are left out.
        seed: draws from a coarse grid that is too large itself.
    """
    listed, design = _listed(encoder.space.model_dump_json(), encoder.shares, seed)
    left = [place for place, strategy in enumerate(listed) if strategy.key not in tried]
    strategies, picked = [listed[place] for place in left], design.take(left).widened(len(encoder.columns.names))
    if StrategyGrid(encoder.space).count <= LARGEST:
        return strategies, picked
    known = {strategy.key for strategy in strategies} | tried
    near = {strategy.key: strategy for strategy in _near_the_best(encoder.space, history) if strategy.key not in known}
    if not near:
        return strategies, picked
    draw = random.Random(repr((seed, len(history))))  # noqa: S311 - a search, not a secret
    chosen = list(near.values()) if len(near) <= _NEIGHBOURS else draw.sample(list(near.values()), _NEIGHBOURS)
    return [*strategies, *chosen], picked.joined(encoder.design(chosen))


def coarse(space: SearchSpace) -> SearchSpace:
    """The space with few values of what decides and only the default of everything else."""
    return space.model_copy(update={"methods": tuple(_coarse_method(method) for method in space.methods)})


def neighbours(space: SearchSpace, strategy: Strategy) -> tuple[Strategy, ...]:
    """Legal strategies that differ in one parameter by one step, or lack one stage."""
    stages = canonical(space, strategy).stages
    fewer = (Strategy(stages=(*stages[:place], *stages[place + 1 :])) for place in range(len(stages)))
    shorter = (canonical(space, found) for found in fewer if is_legal(space, found))
    return (*parameter_moves(space, strategy), *shorter)


def _near_the_best(space: SearchSpace, history: Sequence[EpisodeRecord]) -> Iterator[Strategy]:
    import moocore

    measured = [record for record in history if record.objectives is not None and not record.strategy.is_baseline]
    if not measured:
        return
    best = moocore.is_nondominated(loss_rows([record.objectives for record in measured if record.objectives]))
    for record, stands in zip(measured, best, strict=True):
        if stands:
            yield from neighbours(space, record.strategy)


@lru_cache(maxsize=4)
def _listed(space: str, shares: Shares, seed: int) -> tuple[tuple[Strategy, ...], Design]:
    encoder = Encoder(SearchSpace.model_validate_json(space), shares)
    grid = StrategyGrid(encoder.space)
    if grid.count > LARGEST:
        grid = StrategyGrid(coarse(encoder.space))
    places: Sequence[int] = range(grid.count)
    if grid.count > LARGEST:
        places = sorted(random.Random(seed).sample(places, LARGEST))  # noqa: S311 - a search, not a secret
    found = {strategy.key: strategy for strategy in (canonical(encoder.space, grid.at(place)) for place in places)}
    strategies = tuple(found.values())
    return strategies, encoder.design(strategies)


def _coarse_method(method: MethodDescription) -> MethodDescription:
    return method.model_copy(update={"parameters": tuple(_coarse_parameter(p) for p in method.parameters)})


def _coarse_parameter(parameter: Parameter) -> Parameter:
    values = parameter_values(parameter)
    if parameter.name not in _DECIDING:
        chosen: tuple[ParameterValue, ...] = (parameter.default,)
    elif len(values) <= _VALUES or isinstance(values[0], str):
        chosen = values
    else:
        spread = {values[round(part * (len(values) - 1) / (_VALUES - 1))] for part in range(_VALUES)}
        chosen = tuple(value for value in values if value in spread or value == parameter.default)
    default = parameter.default if parameter.default in chosen else chosen[0]
    return parameter.model_copy(
        update={"kind": "choice", "choices": chosen, "low": None, "high": None, "step": None, "default": default}
    )
