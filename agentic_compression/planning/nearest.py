"""Local search on the grid of strategies: what is untried and nearest."""

from __future__ import annotations

from collections.abc import Collection

from agentic_compression.planning.moves import parameter_moves
from agentic_compression.records import SearchSpace, Strategy

__all__ = ["nearest_untried"]

_LOOKED_AT = 400


def nearest_untried(
    space: SearchSpace, start: Strategy, tried: Collection[str], looked_at: int = _LOOKED_AT
) -> list[Strategy]:
    """The untried strategies with the methods of the start and the fewest steps from it, all of the same number.

    Args:
        space: the methods on offer.
        start: a strategy of this space.
        tried: keys of canonical forms.
        looked_at: strategies after which no further step is taken.

    Returns:
        In a fixed order; none where everything within reach was tried.
    """
    seen, level = {start.key}, [start]
    while level and len(seen) <= looked_at:
        following = {move.key: move for strategy in level for move in parameter_moves(space, strategy)}
        fresh = {key: move for key, move in following.items() if key not in seen}
        untried = [move for key, move in fresh.items() if key not in tried]
        if untried:
            return untried
        seen |= set(fresh)
        level = list(fresh.values())
    return []
