"""SVD-LLM: low-rank factorization of whitened layers.

Idea: every linear becomes two thin ones, chosen so that the layer's *output* on calibration text is approximated best
instead of its weight. With ``L Lᵀ`` the Cholesky factorization of the inputs' second moment, the squared output error
of ``W'`` is ``‖(W - W') L‖²``, so the largest singular values of ``W L`` are kept and ``L`` is divided out again: what
is cut off is exactly the error made (Wang et al. 2024, arXiv:2403.07378). Each decoder block sees the outputs of the
blocks factorized before it.

Changes: linears of the decoder blocks, where two factors are smaller than one weight. Not covered: the paper's
fine-tuning of the factors (see the healing methods), a ratio of its own for each layer, embeddings, the output
embedding. It does not follow pruning of single weights: factors of a sparse weight are dense.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import (
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Range,
    Workload,
)
from agentic_compression.methods.sparsity import PRUNED_BY_SCORE

__all__ = ["METHOD", "SvdLlmConfig", "apply", "factorize", "whitener"]

_DAMP = 1e-4
_STEPS = 4  # of ten times more damping each


class SvdLlmConfig(MethodConfig):
    """Parameters of SVD-LLM."""

    rank_ratio: Annotated[float, Range(0.1, 0.9, step=0.1)] = Field(
        default=0.7, description="parameters of the two factors over those of the layer"
    )


def apply(model: Any, config: SvdLlmConfig, context: CompressionContext) -> Compressed:
    """Replace target linears by ``LowRankLinear`` pairs, in place.

    Args:
        model: a causal language model with a list of decoder blocks.
        config: share of parameters to keep.
        context: calibration windows, device, progress.

    Raises:
        CompressionError: when calibration data is missing or activations are not finite.
    """
    from agentic_compression.methods.factorization import replace_linear
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.linear_layers import require_linears, uncovered_notes

    require_linears(model, "svd_llm")
    notes = [*uncovered_notes(model)]

    shares: list[float] = []

    def factors(weight: Any, rank: int, gram: Any) -> Any:
        if gram is None:
            return factorize(weight, rank)
        lower, share = whitener(gram.matrix)
        shares.append(share)
        return _factors(weight, rank, lower)

    for layers in walk_blocks(model, context, "svd_llm"):
        while layers:  # nothing holds a replaced weight
            name = layers[0][0]
            replace_linear(model, layers.pop(0), config.rank_ratio, factors, notes)
            if shares and shares.pop() > _DAMP:
                notes.append(f"{name}: too little calibration text for its inputs, damped more than the others")
    return Compressed(model=model, notes=tuple(notes))


def factorize(weight: Any, rank: int, gram: Any = None) -> tuple[Any, Any]:
    """Factors whose output differs least from the weight's.

    Args:
        weight: ``(out_features, in_features)``.
        rank: of the product.
        gram: mean of ``x xᵀ`` over the inputs, ``(in_features, in_features)``; None weighs all inputs alike.

    Returns:
        ``down`` ``(rank, in_features)`` and ``up`` ``(out_features, rank)``, float64.
    """
    return _factors(weight, rank, None if gram is None else whitener(gram)[0])


def whitener(gram: Any) -> tuple[Any, float]:
    """``L`` of ``G + d·mean(diag G)·I = L Lᵀ``, float64, and the share ``d`` it took; None for a matrix of zeros.

    Inputs that calibration never moved, or only together, would leave the factor singular. Sums in float32 may make the
    matrix of few tokens with one very large activation indefinite by more than the damping, which then grows tenfold.

    Args:
        gram: mean of ``x xᵀ`` over the inputs, ``(in_features, in_features)``.

    Raises:
        CompressionError: when no damping up to 1,000 times the usual is enough.
    """
    import torch

    h = gram.to(torch.float64, copy=True)
    diagonal = h.diagonal().clone()
    mean = float(diagonal.mean())
    if mean == 0:
        return None, _DAMP
    for step in range(_STEPS):
        share = _DAMP * 10**step
        h.diagonal().copy_(diagonal + share * mean)
        lower, info = torch.linalg.cholesky_ex(h)
        if not int(info):
            return lower, share
    raise CompressionError(
        f"the second moment of {len(h)} inputs is not positive definite even with {share:g} of its mean diagonal "
        "added; use more calibration text, or asvd"
    )


def _factors(weight: Any, rank: int, lower: Any) -> tuple[Any, Any]:
    import torch

    from agentic_compression.methods.factorization import truncated_svd

    w = weight.to(torch.float64)
    if lower is None:
        return truncated_svd(w, rank)
    down, up = truncated_svd(w @ lower, rank)
    return torch.linalg.solve_triangular(lower, down, upper=False, left=False), up


def _needs(workload: Workload, _: SvdLlmConfig) -> Needs:
    """A walk with matrices, the decomposition, and two float64 matrices of the widest input for whitening."""
    from agentic_compression.methods.calibration_cost import walking_needs
    from agentic_compression.methods.factorization import decomposing_bytes, decomposing_seconds

    walk = walking_needs(workload, matrices=True)
    return Needs(
        peak_bytes=walk.peak_bytes + decomposing_bytes(workload) + 16 * workload.widest_input**2,
        seconds=walk.seconds + decomposing_seconds(workload),
    )


METHOD = Method(
    name="svd_llm",
    category="low_rank",
    stored_as="factors",
    config=SvdLlmConfig,
    apply=apply,
    summary="replace each layer by two thin ones that keep its output on calibration text best (whitened SVD)",
    paper="Wang et al. 2024, SVD-LLM, arXiv:2403.07378",
    needs_calibration=True,
    may_follow=("pruning",),
    may_not_follow=PRUNED_BY_SCORE,
    needs=_needs,
)
