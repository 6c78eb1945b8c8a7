"""What low-rank methods share: a layer's rank, truncated decompositions, linears replaced by two thin ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from agentic_compression.methods.interface import Workload
    from agentic_compression.methods.layerwise import Gram

__all__ = [
    "UNREACHED",
    "Factors",
    "decomposing_bytes",
    "decomposing_seconds",
    "rank_for",
    "replace_linear",
    "truncated_svd",
]

_MULTIPLE = 8
_ROUNDED_FROM = 64

UNREACHED = "no calibration token reached it or its inputs are all zero, plain singular value decomposition"

Factors = Callable[["torch.Tensor", int, "Gram | None"], "tuple[torch.Tensor, torch.Tensor]"]
"""From a weight ``(out_features, in_features)``, a rank and the statistics of its inputs (None: use none), ``down``
``(rank, in_features)`` and ``up`` ``(out_features, rank)``, float64."""


def rank_for(out_features: int, in_features: int, rank_ratio: float) -> int:
    """The greatest rank whose factors have at most ``rank_ratio`` of the weight's parameters; a multiple of 8 from 64.

    Below 64 rounding to 8s would take away more than a tenth. Zero when not even rank 1 saves that much. As
    ``rank_ratio`` is below 1 the rank is below both widths, also of the flat key and value projections of grouped-query
    attention.
    """
    rank = int(rank_ratio * out_features * in_features / (out_features + in_features) + 1e-9)
    return rank - rank % _MULTIPLE if rank >= _ROUNDED_FROM else rank


def truncated_svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best approximation of a matrix of that rank, ``up @ down``, the singular values split evenly between the two.

    Args:
        matrix: ``(rows, columns)``, float64.
        rank: of the product.

    Returns:
        ``down`` ``(rank, columns)`` and ``up`` ``(rows, rank)``.
    """
    import torch

    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def decomposing_bytes(workload: Workload) -> int:
    """Of the widest weight in float64: it, its weighed form, LAPACK's copy and work, both sides of the result."""
    return 8 * (5 * workload.widest_input * workload.hidden + 3 * workload.hidden**2)


def decomposing_seconds(workload: Workload) -> float:
    """Of all linears: 1.6 ns · m² · n for m ≤ n, measured on one core, where m is the width of the residual stream."""
    return 1.6e-9 * workload.hidden * workload.linear_parameters


def replace_linear(
    model: Any, layer: tuple[str, nn.Linear, Gram | None], rank_ratio: float, factors: Factors, notes: list[str]
) -> None:
    """Replace one linear of a model by a ``LowRankLinear``; the second factor carries its bias.

    Args:
        model: changed in place.
        layer: name, linear and statistics of its inputs; None where the method uses none.
        rank_ratio: parameters of the two factors over those of the weight.
        factors: how to decompose.
        notes: gets a line when the layer is too small to save anything or no token reached it.
    """
    from torch import nn

    from agentic_compression.checkpoints.low_rank_linear import LowRankLinear

    name, linear, gram = layer
    out_features, in_features = linear.weight.shape
    rank = rank_for(out_features, in_features, rank_ratio)
    if rank < 1:
        notes.append(f"{name}: {out_features} x {in_features} is too small to save anything, left as is")
        return
    if gram is not None and not bool(gram.mean_absolute.any()):
        notes.append(f"{name}: {UNREACHED}")
        gram = None
    weight = linear.weight.detach()
    like: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    down = nn.Linear(in_features, rank, bias=False, **like)
    up = nn.Linear(rank, out_features, bias=linear.bias is not None, **like)
    down_weight, up_weight = factors(weight, rank, gram)
    down.weight.data.copy_(down_weight)
    up.weight.data.copy_(up_weight)
    if linear.bias is not None:
        up.bias.data.copy_(linear.bias.detach())
    model.set_submodule(name, LowRankLinear(down, up).requires_grad_(weight.requires_grad))
