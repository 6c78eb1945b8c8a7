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

__all__ = ["METHOD", "SvdLlmConfig", "apply", "factorize"]

_DAMP = 1e-4


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

    def factors(weight: Any, rank: int, gram: Any) -> Any:
        return factorize(weight, rank, None if gram is None else gram.matrix)

    for layers in walk_blocks(model, context, "svd_llm"):
        while layers:  # nothing holds a replaced weight
            replace_linear(model, layers.pop(0), config.rank_ratio, factors, notes)
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
    import torch

    from agentic_compression.methods.factorization import truncated_svd

    w = weight.to(torch.float64)
    if gram is None:
        return truncated_svd(w, rank)
    h = gram.to(torch.float64, copy=True)
    # Inputs that calibration never moved, or only together, would leave the factor singular.
    h.diagonal().add_(_DAMP * h.diagonal().mean())
    lower = torch.linalg.cholesky(h)
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
    config=SvdLlmConfig,
    apply=apply,
    summary="replace each layer by two thin ones that keep its output on calibration text best (whitened SVD)",
    paper="Wang et al. 2024, SVD-LLM, arXiv:2403.07378",
    needs_calibration=True,
    may_follow=("pruning",),
    may_not_follow=PRUNED_BY_SCORE,
    needs=_needs,
)
