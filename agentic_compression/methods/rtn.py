"""Round-to-nearest weight-only quantization.

Idea: every group of consecutive input weights of a row gets one scale from its extremes, and every weight the nearest
of the grid's levels. No data is needed. It is the baseline every other quantizer is measured against, described for
language models by Dettmers et al. 2022 (LLM.int8(), arXiv:2208.07339) and Yao et al. 2022 (ZeroQuant,
arXiv:2206.01861).

Changes: all linears except the output embedding become packed integers with 16-bit scales. Not covered: embeddings,
norms, activations and the key-value cache stay in floating point.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import Choice, Compressed, CompressionContext, Method, MethodConfig

__all__ = ["METHOD", "RtnConfig", "apply"]


class RtnConfig(MethodConfig):
    """Parameters of round-to-nearest."""

    bits: Annotated[int, Choice(2, 3, 4, 8)] = Field(default=4, description="bits a weight")
    group_size: Annotated[int, Choice(-1, 32, 64, 128)] = Field(
        default=64, description="input weights that share a scale; -1: a whole row"
    )
    symmetric: Annotated[bool, Choice(True, False)] = Field(
        default=False, description="grid centred on zero; false stores a zero point a group"
    )


def apply(model: Any, config: RtnConfig, context: CompressionContext) -> Compressed:
    """Quantize every target linear, one after the other, in place.

    Args:
        model: a causal language model; weights ``(out_features, in_features)``.
        config: bits, group size, symmetry.
        context: device and progress; no calibration data is used.
    """
    from agentic_compression.checkpoints.packed_linear import PackedLinear
    from agentic_compression.methods.linear_layers import group_notes, target_linears

    targets = target_linears(model)
    for done, (name, linear) in enumerate(targets):
        context.progress("rtn", done, len(targets))
        weight = quantize(linear.weight.detach(), config)
        model.set_submodule(name, PackedLinear(weight, linear.bias))
    context.progress("rtn", len(targets), len(targets))
    notes = group_notes([(name, linear.in_features) for name, linear in targets], config.group_size)
    return Compressed(model=model, notes=notes)


def quantize(weight: Any, config: RtnConfig) -> Any:
    """Round one weight ``(out_features, in_features)`` to a ``QuantizedTensor``."""
    import torch

    from agentic_compression.checkpoints.quantized import QuantizedTensor
    from agentic_compression.methods.linear_layers import fitting_group_size
    from agentic_compression.methods.rounding import grid, round_to_grid, stored_scale_dtype

    rows, columns = weight.shape
    groups = columns // fitting_group_size(columns, config.group_size)
    grouped = weight.to(torch.float32).view(rows, groups, -1)
    scale, zero_point = grid(grouped, config.bits, config.symmetric)
    codes = round_to_grid(grouped, scale[..., None], zero_point[..., None], config.bits)
    return QuantizedTensor(
        codes=codes.view(rows, columns).to(torch.int8),
        scale=scale.to(stored_scale_dtype(weight.dtype)),
        zero_point=None if config.symmetric else zero_point.to(torch.int8),
        bits=config.bits,
    )


METHOD = Method(
    name="rtn",
    category="quantization",
    config=RtnConfig,
    apply=apply,
    summary="round weights to the nearest of 2, 3, 4 or 8 bits, in groups; needs no data and takes seconds",
    paper="Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339; Yao et al. 2022, ZeroQuant, arXiv:2206.01861",
    may_follow=("pruning", "low_rank", "healing"),
)
