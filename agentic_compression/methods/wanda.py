"""Wanda: pruning by weight times input.

Idea: a weight matters as much as what it adds to the output, so its score is ``|W_ij| · ‖X_j‖₂`` with ``X_j`` input
``j`` over calibration text, and scores are compared within an output row, not within the layer (Sun et al. 2023,
arXiv:2306.11695). Nothing is updated. Each decoder block sees the outputs of the blocks pruned before it.

Changes: weights of the linears of the decoder blocks; ``round(sparsity * in_features)`` of every row become zero, or
with the pattern ``2:4`` the lower two of every four consecutive inputs, ties to the earlier position. Not covered:
embeddings, the output embedding, a sparsity of its own for each layer. Zeros make files smaller, not the running model
(see ``magnitude``).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import (
    ActiveWhen,
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Range,
    Workload,
)
from agentic_compression.methods.sparsity import PRUNED_BY_SCORE, TWO_FOUR, UNSTRUCTURED

__all__ = ["METHOD", "WandaConfig", "apply", "wanda_mask"]

_SCORED_AT_ONCE = 1 << 22


class WandaConfig(MethodConfig):
    """Parameters of Wanda."""

    sparsity: Annotated[float, Range(0.1, 0.9, step=0.1), ActiveWhen("pattern", UNSTRUCTURED)] = Field(
        default=0.5, description="fraction of the weights of every output row that become zero"
    )
    pattern: Annotated[str, Choice(UNSTRUCTURED, TWO_FOUR)] = Field(
        default=UNSTRUCTURED, description="anywhere in the row, or two of every four consecutive inputs"
    )


def apply(model: Any, config: WandaConfig, context: CompressionContext) -> Compressed:
    """Zero the weights of least effect in the linears of every decoder block, in place.

    Args:
        model: a causal language model with a list of decoder blocks.
        config: sparsity, pattern.
        context: calibration windows, device, progress.

    Raises:
        CompressionError: when calibration data is missing, activations are not finite, or the pattern is 2:4 and a
            width is no multiple of four.
    """
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.linear_layers import uncovered_notes
    from agentic_compression.methods.sparsity import layers_to_prune

    layers_to_prune(model, "wanda", config.pattern)
    notes = [*uncovered_notes(model)]
    for layers in walk_blocks(model, context, "wanda", matrices=False):
        for name, linear, gram in layers:
            if gram.count == 0:
                notes.append(f"{name}: no calibration token reached it, pruned by magnitude")
            linear.weight.data.masked_fill_(wanda_mask(linear.weight.detach(), gram.diagonal, config), 0)
    return Compressed(model=model, notes=tuple(notes))


def wanda_mask(weight: Any, mean_squares: Any, config: WandaConfig) -> Any:
    """Which weights to zero for the inputs a linear sees.

    Args:
        weight: ``(out_features, in_features)``.
        mean_squares: mean of ``x²`` by input, ``(in_features,)``.
        config: sparsity, pattern.

    Returns:
        bool ``(out_features, in_features)``.
    """
    import torch

    from agentic_compression.methods.sparsity import input_norms, lowest, two_of_four

    norms = input_norms(mean_squares)
    count = round(config.sparsity * weight.shape[1])
    parts = []
    for rows in weight.split(max(1, _SCORED_AT_ONCE // weight.shape[1])):
        scores = rows.to(torch.float64).abs() * norms
        parts.append(two_of_four(scores) if config.pattern == TWO_FOUR else lowest(scores, count))
    return torch.cat(parts)


def _needs(workload: Workload, _: WandaConfig) -> Needs:
    """A walk without matrices; float64 scores with a copy and 8-byte places, and some 60 ns a weight on one core."""
    from agentic_compression.methods.calibration_cost import walking_needs

    walk = walking_needs(workload, matrices=False)
    at_once = min(_SCORED_AT_ONCE, workload.widest_input * workload.hidden)
    return Needs(
        peak_bytes=walk.peak_bytes + 32 * at_once + workload.widest_input * workload.hidden,
        seconds=walk.seconds + 60e-9 * workload.linear_parameters,
    )


METHOD = Method(
    name="wanda",
    category="pruning",
    stored_as="masked",
    config=WandaConfig,
    apply=apply,
    summary="zero the weights with the least weight times input in every output row; needs calibration text, quick",
    paper="Sun et al. 2023, Wanda, arXiv:2306.11695",
    needs_calibration=True,
    may_follow=("pruning",),
    may_not_follow=PRUNED_BY_SCORE,
    needs=_needs,
)
