"""Low-rank factorization: every linear becomes two thin ones.

Idea: the best approximation of a weight ``W`` of a given rank, in the Frobenius norm, keeps its largest singular values
(Eckart and Young 1936). With ``whiten`` it is the layer's output on calibration data that is approximated best instead
of its weight: the decomposition is that of ``W S`` with ``S Sᵀ`` the Gram matrix of the inputs, and ``S`` is divided
out again (Wang et al. 2024, SVD-LLM, arXiv:2403.07378). Language models' weights are close to full rank, so whitening
matters much.

Changes: linears of the decoder blocks, where two factors are smaller than one weight. Not covered: embeddings and the
output embedding. It does not follow pruning: factors of a sparse weight are dense.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import Choice, Compressed, CompressionContext, Method, MethodConfig, Range

__all__ = ["METHOD", "LowRankConfig", "apply", "factorize", "rank_for"]

_RANK_MULTIPLE = 8
_DAMP = 1e-4


class LowRankConfig(MethodConfig):
    """Parameters of low-rank factorization."""

    rank_ratio: Annotated[float, Range(0.1, 0.9, step=0.1)] = Field(
        default=0.7, description="parameters of the two factors over those of the layer"
    )
    whiten: Annotated[bool, Choice(True, False)] = Field(
        default=True, description="weigh the error by the inputs of calibration text"
    )


def apply(model: Any, config: LowRankConfig, context: CompressionContext) -> Compressed:
    """Replace target linears by ``LowRankLinear`` pairs, in place.

    Args:
        model: a causal language model.
        config: share of parameters to keep, whitening.
        context: calibration windows when whitening, device, progress.

    Raises:
        CompressionError: when whitening without calibration data.
    """
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.linear_layers import target_linears

    notes: list[str] = []
    if config.whiten:
        for layers in walk_blocks(model, context, "low_rank"):
            for name, linear, gram in layers:
                _replace(model, name, linear, config, gram.matrix if gram.count else None, notes)
        return Compressed(model=model, notes=tuple(notes))
    targets = target_linears(model)
    for done, (name, linear) in enumerate(targets):
        context.progress("low_rank", done, len(targets))
        _replace(model, name, linear, config, None, notes)
    context.progress("low_rank", len(targets), len(targets))
    return Compressed(model=model, notes=tuple(notes))


def rank_for(out_features: int, in_features: int, rank_ratio: float) -> int:
    """The rank whose factors have ``rank_ratio`` of the weight's parameters, rounded down (to 8s from 16 on).

    Zero when not even rank 1 saves anything.
    """
    rank = int(rank_ratio * out_features * in_features / (out_features + in_features) + 1e-9)
    return rank - rank % _RANK_MULTIPLE if rank >= 2 * _RANK_MULTIPLE else rank


def factorize(weight: Any, rank: int, gram: Any = None) -> tuple[Any, Any]:
    """Best factors of a weight.

    Args:
        weight: ``(out_features, in_features)``.
        rank: of the product.
        gram: mean of ``x xᵀ`` over the inputs to weigh the error by, ``(in_features, in_features)``, or None.

    Returns:
        ``down`` ``(rank, in_features)`` and ``up`` ``(out_features, rank)``, float64, the singular values split evenly.
    """
    import torch

    w = weight.to(torch.float64)
    if gram is None:
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        root = s[:rank].sqrt()
        return root[:, None] * v[:rank], u[:, :rank] * root
    h = gram.to(torch.float64)
    h = h + _DAMP * h.diagonal().mean().clamp(min=1e-12) * torch.eye(h.shape[0], dtype=h.dtype, device=h.device)
    lower = torch.linalg.cholesky(h)
    u, s, v = torch.linalg.svd(w @ lower, full_matrices=False)
    root = s[:rank].sqrt()
    down = torch.linalg.solve_triangular(lower, root[:, None] * v[:rank], upper=False, left=False)
    return down, u[:, :rank] * root


def _replace(model: Any, name: str, linear: Any, config: LowRankConfig, gram: Any, notes: list[str]) -> None:
    from torch import nn

    from agentic_compression.checkpoints.low_rank_linear import LowRankLinear

    rank = rank_for(linear.out_features, linear.in_features, config.rank_ratio)
    if rank < 1:
        notes.append(f"{name}: {linear.out_features} x {linear.in_features} is too small to save anything, left as is")
        return
    weight = linear.weight
    down_weight, up_weight = factorize(weight.detach(), rank, gram)
    down = nn.Linear(linear.in_features, rank, bias=False, dtype=weight.dtype, device=weight.device)
    up = nn.Linear(rank, linear.out_features, bias=linear.bias is not None, dtype=weight.dtype, device=weight.device)
    down.weight.data.copy_(down_weight)
    up.weight.data.copy_(up_weight)
    if linear.bias is not None:
        up.bias.data.copy_(linear.bias.detach())
    model.set_submodule(name, LowRankLinear(down, up))


METHOD = Method(
    name="low_rank",
    category="low_rank",
    config=LowRankConfig,
    apply=apply,
    summary="replace each layer by two thin ones (truncated SVD, weighed by calibration inputs)",
    paper="Eckart and Young 1936; Wang et al. 2024, SVD-LLM, arXiv:2403.07378",
    needs_calibration=True,
    calibrates=lambda config: config.whiten,
)
