"""LLM.int8(): 8-bit weights and activations, outliers in floating point.

Idea: every output row of a weight and, while the model runs, every row of activations gets one scale from its largest
magnitude and becomes int8, so that the product is an integer one. A few feature columns of a language model's
activations are far larger than the rest and would take all the levels; columns that hold a magnitude of at least
``threshold`` are multiplied in floating point instead (Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339). No data is
needed.

Changes: all linears except the output embedding. Scales are rounded up to bfloat16 before the codes are computed. On
the CPU, products too small for rounding activations to pay (a few tokens at a time) leave activations in bfloat16, so
outliers need no path there and the result is closer to full precision. The checkpoint is in bitsandbytes'
8-bit format, which transformers loads with that library. Not covered: embeddings, norms, the key-value cache, and
products inside attention stay in floating point.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import (
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Workload,
)

__all__ = ["METHOD", "Int8Config", "apply"]


class Int8Config(MethodConfig):
    """Parameters of LLM.int8()."""

    threshold: Annotated[float, Choice(0.0, 6.0)] = Field(
        default=6.0, description="activation magnitude from which a column is multiplied in floating point; 0: none is"
    )


def apply(model: Any, config: Int8Config, context: CompressionContext) -> Compressed:
    """Quantize every target linear, one after the other, in place.

    Args:
        model: a causal language model; weights ``(out_features, in_features)``.
        config: the threshold.
        context: progress; no calibration data is used.
    """
    from agentic_compression.checkpoints.int8_linear import WEIGHT_ONLY_BELOW, WEIGHT_ONLY_ROWS, Int8Linear
    from agentic_compression.methods.replacement import replace_linears

    def replacement(linear: Any) -> Any:
        codes, scale = quantize(linear.weight.detach())
        return Int8Linear(codes, scale, linear.bias, config.threshold)

    replace_linears(model, "int8", context, replacement)
    note = (
        f"on a CPU, up to {WEIGHT_ONLY_ROWS} rows at a time and products below {WEIGHT_ONLY_BELOW:,} multiply-adds "
        "leave activations in bfloat16 instead of int8"
    )
    return Compressed(model=model, notes=(note,))


def quantize(weight: Any) -> tuple[Any, Any]:
    """Round each row of a weight ``(out_features, in_features)``.

    Returns:
        Codes int8 ``(out_features, in_features)`` in -127..127, and scales ``(out_features,)``, float32 numbers that
        bfloat16 holds; a row of zeros has scale 1.
    """
    import torch

    from agentic_compression.methods.rounding import round_up_to_bfloat16

    wide = weight.to(torch.float32)
    scale = round_up_to_bfloat16(wide.abs().amax(dim=1) / 127)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (wide / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def _needs(workload: Workload, config: Int8Config) -> Needs:
    """The model, and of one layer a float32 copy, its magnitudes and its quotients; 8 ns a weight."""
    layer = workload.widest_input * workload.hidden
    return Needs(
        peak_bytes=workload.weight_bytes + 12 * layer,
        seconds=0.05 + workload.linear_parameters / (1.25e8 * workload.threads),
    )


METHOD = Method(
    name="int8",
    category="quantization",
    config=Int8Config,
    apply=apply,
    summary="LLM.int8(): 8-bit weights and activations with outliers apart; nearly lossless, quick, needs no data",
    paper="Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339",
    may_follow=("pruning", "low_rank", "healing"),
    needs=_needs,
)
