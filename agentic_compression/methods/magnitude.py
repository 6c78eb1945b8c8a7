"""Magnitude pruning.

Idea: in every linear the weights smallest in absolute value are set to zero, the same fraction in each layer
(Han et al. 2015, arXiv:1506.02626). With the pattern ``2:4`` it is the smaller two of every four consecutive input
weights, which GPUs from Ampere on can skip (Mishra et al. 2021, arXiv:2104.08378). No data is needed; ties go to the
earlier position, so the count is exact.

Changes: weights of all linears except the output embedding. What it does not do: zeros save nothing while the model
runs, on any device here; the checkpoint stores them compactly (bitmask and values) from 30 % zeros on, which makes the
files smaller, and it then loads with this package only. Followed by quantization the zeros stay zero but are stored
like any other code.
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

__all__ = ["METHOD", "MagnitudeConfig", "apply", "magnitude_mask"]


class MagnitudeConfig(MethodConfig):
    """Parameters of magnitude pruning."""

    sparsity: Annotated[float, Range(0.1, 0.9, step=0.1), ActiveWhen("pattern", UNSTRUCTURED)] = Field(
        default=0.5, description="fraction of the weights of every layer that become zero"
    )
    pattern: Annotated[str, Choice(UNSTRUCTURED, TWO_FOUR)] = Field(
        default=UNSTRUCTURED, description="anywhere in the layer, or two of every four consecutive inputs of a row"
    )


def apply(model: Any, config: MagnitudeConfig, context: CompressionContext) -> Compressed:
    """Zero the smallest weights of every target linear, in place.

    Args:
        model: a causal language model.
        config: sparsity, pattern.
        context: progress; no calibration data is used.

    Raises:
        CompressionError: when there are no linears, or the pattern is 2:4 and a width is no multiple of four.
    """
    import torch

    from agentic_compression.methods.linear_layers import uncovered_notes
    from agentic_compression.methods.sparsity import layers_to_prune

    targets = layers_to_prune(model, "magnitude", config.pattern)
    with torch.no_grad():
        for done, (_, linear) in enumerate(targets):
            context.progress("magnitude", done, len(targets))
            linear.weight.masked_fill_(magnitude_mask(linear.weight, config), 0)
    context.progress("magnitude", len(targets), len(targets))
    return Compressed(model=model, notes=uncovered_notes(model))


def magnitude_mask(weight: Any, config: MagnitudeConfig) -> Any:
    """True for the weights to zero, ``(out_features, in_features)``: ``round(sparsity * elements)`` of them, or 2:4."""
    import torch

    from agentic_compression.methods.sparsity import lowest, two_of_four

    size = weight.detach().abs().to(torch.float32)
    if config.pattern == TWO_FOUR:
        return two_of_four(size)
    return lowest(size.reshape(1, -1), round(config.sparsity * size.numel())).view_as(weight)


def _needs(workload: Workload, _: MagnitudeConfig) -> Needs:
    """Per weight of the widest matrix: float32 size, its copy with 8-byte places, two masks and a 4-byte count.

    Beside that 32 MB of buffers. Selection takes some 50 ns a weight on one core.
    """
    matrix = workload.widest_input * workload.hidden
    return Needs(
        peak_bytes=workload.weight_bytes + 22 * matrix + 32_000_000,
        seconds=50e-9 * workload.linear_parameters,
    )


METHOD = Method(
    name="magnitude",
    category="pruning",
    stored_as="masked",
    config=MagnitudeConfig,
    apply=apply,
    summary="set the smallest weights of every layer to zero; smaller files, same memory and latency when running",
    paper="Han et al. 2015, arXiv:1506.02626",
    may_follow=("pruning",),
    may_not_follow=PRUNED_BY_SCORE,
    needs=_needs,
)
