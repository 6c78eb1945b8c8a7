"""Unstructured magnitude pruning.

Idea: in every linear the weights smallest in absolute value are set to zero, the same fraction in each layer
(Han et al. 2015, arXiv:1506.02626). No data is needed; ties go to the earlier position, so the count is exact.

Changes: weights of all linears except the output embedding. What it does not do: zeros save nothing while the model
runs, on any device here; the checkpoint stores them compactly (bitmask and values) from 30 % zeros on, which makes the
files smaller, and it then loads with this package only. Followed by quantization the zeros stay zero but are stored
like any other code.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import Compressed, CompressionContext, Method, MethodConfig, Range

__all__ = ["METHOD", "MagnitudeConfig", "apply"]


class MagnitudeConfig(MethodConfig):
    """Parameters of magnitude pruning."""

    sparsity: Annotated[float, Range(0.1, 0.9, step=0.1)] = Field(
        default=0.3, description="fraction of the weights of every layer that become zero"
    )


def apply(model: Any, config: MagnitudeConfig, context: CompressionContext) -> Compressed:
    """Zero the ``round(sparsity * elements)`` smallest weights of every target linear, in place.

    Args:
        model: a causal language model.
        config: the sparsity.
        context: progress; no calibration data is used.
    """
    import torch

    from agentic_compression.methods.linear_layers import target_linears

    targets = target_linears(model)
    with torch.no_grad():
        for done, (_, linear) in enumerate(targets):
            context.progress("magnitude", done, len(targets))
            flat = linear.weight.detach().reshape(-1)
            count = round(config.sparsity * flat.numel())
            order = torch.argsort(flat.abs().to(torch.float32), stable=True)
            pruned = flat.clone()
            pruned[order[:count]] = 0
            linear.weight.copy_(pruned.view_as(linear.weight))
    context.progress("magnitude", len(targets), len(targets))
    return Compressed(model=model)


METHOD = Method(
    name="magnitude",
    category="pruning",
    config=MagnitudeConfig,
    apply=apply,
    summary="set the smallest weights of every layer to zero; smaller files, same memory and latency when running",
    paper="Han et al. 2015, arXiv:1506.02626",
)
