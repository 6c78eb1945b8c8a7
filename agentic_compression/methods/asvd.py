"""ASVD: low-rank factorization that favours the inputs with large activations.

Idea: every linear becomes two thin ones. The best approximation of a weight of a given rank, in the Frobenius norm,
keeps its largest singular values (Eckart and Young 1936), but a few input channels carry most of the activations. So
it is ``W S`` that is decomposed, with ``S`` the diagonal of ``mean|x_j|^alpha`` over calibration text, and ``S`` is
divided out again (Yuan et al. 2023, arXiv:2312.05821). With ``alpha=0`` that is the plain decomposition, without text.

Changes: linears of the decoder blocks (with ``alpha=0`` all linears but the output embedding), where two factors are
smaller than one weight. Not covered: a ratio of its own for each layer from its sensitivity, embeddings, the output
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

__all__ = ["METHOD", "AsvdConfig", "apply", "factorize"]

_SMALLEST_SCALE = 1e-6


class AsvdConfig(MethodConfig):
    """Parameters of ASVD."""

    rank_ratio: Annotated[float, Range(0.1, 0.9, step=0.1)] = Field(
        default=0.7, description="parameters of the two factors over those of the layer"
    )
    alpha: Annotated[float, Range(0, 1, step=0.25)] = Field(
        default=0.5, description="power of an input's mean size that the error is weighed by; 0: no calibration text"
    )


def apply(model: Any, config: AsvdConfig, context: CompressionContext) -> Compressed:
    """Replace target linears by ``LowRankLinear`` pairs, in place.

    Args:
        model: a causal language model, with a list of decoder blocks unless ``alpha`` is 0.
        config: share of parameters to keep, power of the scale.
        context: calibration windows unless ``alpha`` is 0, device, progress.

    Raises:
        CompressionError: when calibration data is missing or activations are not finite.
    """
    from agentic_compression.methods.factorization import replace_linear
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.linear_layers import require_linears, uncovered_notes

    targets = require_linears(model, "asvd")
    notes = [*uncovered_notes(model)]

    def factors(weight: Any, rank: int, gram: Any) -> Any:
        return factorize(weight, rank, None if gram is None else gram.mean_absolute, config.alpha)

    if config.alpha > 0:
        targets.clear()
        for layers in walk_blocks(model, context, "asvd", matrices=False):
            while layers:  # nothing holds a replaced weight
                replace_linear(model, layers.pop(0), config.rank_ratio, factors, notes)
        return Compressed(model=model, notes=tuple(notes))
    total = len(targets)
    while targets:
        context.progress("asvd", total - len(targets), total)
        replace_linear(model, (*targets.pop(0), None), config.rank_ratio, factors, notes)
    context.progress("asvd", total, total)
    return Compressed(model=model, notes=tuple(notes))


def factorize(weight: Any, rank: int, mean_absolute: Any = None, alpha: float = 0.5) -> tuple[Any, Any]:
    """Factors that are best when an error at input ``j`` counts ``mean|x_j|^alpha`` as much.

    Args:
        weight: ``(out_features, in_features)``.
        rank: of the product.
        mean_absolute: mean of ``|x|`` by input, ``(in_features,)``; None, or zeros only, weigh all alike.
        alpha: the power.

    Returns:
        ``down`` ``(rank, in_features)`` and ``up`` ``(out_features, rank)``, float64.
    """
    import torch

    from agentic_compression.methods.factorization import truncated_svd

    w = weight.to(torch.float64)
    if mean_absolute is None or not bool(mean_absolute.any()):
        return truncated_svd(w, rank)
    size = mean_absolute.to(torch.float64)
    scale = size.clamp(min=_SMALLEST_SCALE * float(size.max())).pow(alpha)  # dead inputs must not divide by zero
    down, up = truncated_svd(w * scale, rank)
    return down / scale, up


def _needs(workload: Workload, config: AsvdConfig) -> Needs:
    from agentic_compression.methods.calibration_cost import walking_needs
    from agentic_compression.methods.factorization import decomposing_bytes, decomposing_seconds

    walk = Needs(peak_bytes=workload.weight_bytes, seconds=0.0)
    if config.alpha > 0:
        walk = walking_needs(workload, matrices=False)
    return Needs(
        peak_bytes=walk.peak_bytes + decomposing_bytes(workload),
        seconds=walk.seconds + decomposing_seconds(workload),
    )


METHOD = Method(
    name="asvd",
    category="low_rank",
    stored_as="factors",
    config=AsvdConfig,
    apply=apply,
    summary="replace each layer by two thin ones (truncated SVD, inputs scaled by the size of their activations)",
    paper="Yuan et al. 2023, ASVD, arXiv:2312.05821; Eckart and Young 1936",
    needs_calibration=True,
    calibrates=lambda config: config.alpha > 0,
    may_follow=("pruning",),
    may_not_follow=PRUNED_BY_SCORE,
    needs=_needs,
)
