"""Masks of pruning: exact counts, ties to the earlier position, two zeros in every four for hardware that skips them.

True in a mask is a weight that becomes zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError
from agentic_compression.methods.linear_layers import require_linears

if TYPE_CHECKING:
    import torch

__all__ = [
    "PRUNED_BY_SCORE",
    "TWO_FOUR",
    "UNSTRUCTURED",
    "input_norms",
    "layers_to_prune",
    "lowest",
    "two_of_four",
]

UNSTRUCTURED = "unstructured"
TWO_FOUR = "2:4"
PRUNED_BY_SCORE = ("magnitude", "wanda", "sparsegpt")
"""Methods that choose single weights: a second one would only add to the zeros of the first."""

_GROUP = 4
_DEAD = 1e-6


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` lowest scores of every row; of equal ones those that come first.

    Args:
        scores: ``(rows, columns)``, without NaN.
        count: in ``0..columns``.

    Returns:
        bool ``(rows, columns)`` with exactly ``count`` true a row.
    """
    import torch

    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=1, keepdim=True).values
    mask = scores < threshold
    equal = scores == threshold
    wanted = count - mask.sum(dim=1, keepdim=True)
    return mask | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))


def two_of_four(scores: torch.Tensor) -> torch.Tensor:
    """The two lowest of every four consecutive scores of a row, ``(rows, columns)`` with columns a multiple of four."""
    return lowest(scores.reshape(-1, _GROUP), _GROUP // 2).view_as(scores)


def input_norms(mean_squares: torch.Tensor) -> torch.Tensor:
    """Root mean square of every input, float64: the norm ``‖X_j‖₂`` up to a factor that all inputs share.

    An input that calibration never moved counts a millionth of the smallest that it did, so that its weights go first,
    the smallest before the others; without any calibration token all inputs count the same.

    Args:
        mean_squares: mean of ``x²`` by input, ``(in_features,)``.
    """
    import torch

    norms = mean_squares.to(torch.float64).sqrt()
    live = norms > 0
    if not bool(live.any()):
        return torch.ones_like(norms)
    return torch.where(live, norms, _DEAD * norms[live].min())


def layers_to_prune(model: Any, what: str, pattern: str) -> list[tuple[str, torch.nn.Linear]]:
    """The linears of a model, by name; refuses 2:4 where a width is no multiple of four.

    Raises:
        CompressionError: when there are none, or naming the first that 2:4 does not fit.
    """
    layers = require_linears(model, what)
    for name, linear in layers:
        if pattern == TWO_FOUR and linear.in_features % _GROUP:
            raise CompressionError(
                f"pattern 2:4 needs input widths divisible by 4, got {linear.in_features} in {name}; "
                "use pattern=unstructured"
            )
    return layers
