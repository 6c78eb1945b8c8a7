"""NF4: 4-bit NormalFloat weights, with the scales quantized too.

Idea: weights are nearly normally distributed, so 16 levels at the quantiles of a normal distribution are used equally
often and lose less than 16 evenly spaced ones. Every 64 weights, counted through the whole matrix, share their largest
magnitude as a scale. Double quantization stores these scales in 8 bits, with a scale of their own for every 256 of
them: 4.13 bits a weight in place of 4.5 (Dettmers et al. 2023, QLoRA, arXiv:2305.14314). No data is needed.

Changes: all linears except the output embedding. Without double quantization the scales are rounded up to bfloat16
before the codes are computed, which for 16-bit models with bfloat16 weights changes nothing. The checkpoint is in
bitsandbytes' 4-bit format, which transformers loads with that library, and carries its tables: 1.3 kB a layer. With
bitsandbytes installed and a processor with AVX-512 BF16 its kernel multiplies with the codes; without, each product
dequantizes the weight first, which saves memory and costs time. Not covered: embeddings, norms, activations and the
key-value cache stay in floating point.
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

__all__ = ["METHOD", "Nf4Config", "apply", "quantize"]

_CHUNK_BLOCKS = 1 << 14
_LEAST = 1e-38  # bitsandbytes divides by no less


class Nf4Config(MethodConfig):
    """Parameters of NF4."""

    double_quant: Annotated[bool, Choice(True, False)] = Field(
        default=True, description="store the scales in 8 bits, with one more scale for every 256 of them"
    )


def apply(model: Any, config: Nf4Config, context: CompressionContext) -> Compressed:
    """Quantize every target linear, one after the other, in place.

    Args:
        model: a causal language model; weights ``(out_features, in_features)``.
        config: whether scales are quantized.
        context: progress; no calibration data is used.
    """
    from agentic_compression.checkpoints.nf4_kernel import BLOCK_ROWS
    from agentic_compression.checkpoints.nf4_linear import BLOCK, Nf4Linear
    from agentic_compression.methods.replacement import replace_linears

    uneven: list[str] = []

    def replacement(linear: Any) -> Any:
        if linear.in_features % BLOCK or linear.out_features % BLOCK_ROWS:
            uneven.append(f"{linear.out_features} x {linear.in_features}")
        return Nf4Linear(quantize(linear.weight.detach(), config.double_quant), linear.bias)

    replace_linears(model, "nf4", context, replacement)
    return Compressed(model=model, notes=_notes(uneven))


def _notes(uneven: list[str]) -> tuple[str, ...]:
    if not uneven:
        return ()
    shapes = ", ".join(sorted(set(uneven)))
    return (
        f"{len(uneven)} layers ({shapes}) have widths that 64 or outputs that 32 does not divide: "
        "on CPUs with AVX-512 bitsandbytes 0.50 refuses or misreads these, where this package runs them",
    )


def quantize(weight: Any, double_quant: bool) -> Any:
    """Round a weight ``(out_features, in_features)`` to an ``Nf4Tensor``: the nearest level, the lower one of two."""
    import torch

    from agentic_compression.checkpoints.nf4_kernel import NF4_LEVELS
    from agentic_compression.checkpoints.nf4_linear import BLOCK, Nf4Tensor
    from agentic_compression.methods.rounding import round_up_to_bfloat16

    levels = torch.tensor(NF4_LEVELS, dtype=torch.float32, device=weight.device)
    between = (levels[:-1] + levels[1:]) / 2
    flat = weight.reshape(-1)
    codes, maxima = [], []
    for start in range(0, flat.numel(), _CHUNK_BLOCKS * BLOCK):
        part = flat[start : start + _CHUNK_BLOCKS * BLOCK].to(torch.float32)
        elements = part.numel()
        blocks = torch.nn.functional.pad(part, (0, -elements % BLOCK)).view(-1, BLOCK)
        absmax = blocks.abs().amax(dim=1)
        if not double_quant:
            absmax = round_up_to_bfloat16(absmax)
        scaled = blocks * (1 / absmax.clamp(min=_LEAST))[:, None]
        nibbles = torch.bucketize(scaled.view(-1), between, out_int32=True).to(torch.uint8)
        nibbles = nibbles[: elements + elements % 2].view(-1, 2)  # an odd last one is paired with a zero
        codes.append((nibbles[:, 0] << 4) | nibbles[:, 1])
        maxima.append(absmax)
    absmax, nested_absmax, offset = torch.cat(maxima), None, 0.0
    if double_quant:
        absmax, nested_absmax, offset = quantize_maxima(absmax)
    return Nf4Tensor(
        codes=torch.cat(codes),
        absmax=absmax,
        nested_absmax=nested_absmax,
        offset=offset,
        shape=tuple(weight.shape),
        dtype=weight.dtype,
    )


def quantize_maxima(absmax: Any) -> tuple[Any, Any, float]:
    """Double quantization: block maxima less their mean, rounded to 256 levels in blocks of 256.

    Args:
        absmax: float32 ``(blocks,)``.

    Returns:
        Codes uint8 ``(blocks,)``, scales float32 ``(ceil(blocks / 256),)`` and the mean.
    """
    import torch

    from agentic_compression.checkpoints.nf4_linear import NESTED_BLOCK, dynamic_levels

    offset = absmax.to(torch.float64).mean().to(torch.float32)
    levels = dynamic_levels().to(absmax.device)
    between = (levels[:-1] + levels[1:]) / 2
    centred = absmax - offset
    blocks = torch.nn.functional.pad(centred, (0, -centred.numel() % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    nested = blocks.abs().amax(dim=1)
    scaled = blocks * (1 / nested.clamp(min=_LEAST))[:, None]
    codes = torch.bucketize(scaled.view(-1), between, out_int32=True).to(torch.uint8)
    return codes[: absmax.numel()].contiguous(), nested, float(offset)


def _needs(workload: Workload, config: Nf4Config) -> Needs:
    """The model, of one layer codes and their layout, 24 bytes for each element of a chunk; 30 ns a weight."""
    layer = workload.widest_input * workload.hidden
    return Needs(
        peak_bytes=workload.weight_bytes + 4 * layer + 24 * min(layer, _CHUNK_BLOCKS * 64),
        seconds=0.05 + workload.linear_parameters / (3.3e7 * workload.threads),
    )


METHOD = Method(
    name="nf4",
    category="quantization",
    config=Nf4Config,
    apply=apply,
    summary="4-bit NormalFloat weights in blocks of 64 (QLoRA's format); needs no data and takes seconds",
    paper="Dettmers et al. 2023, QLoRA, arXiv:2305.14314",
    may_follow=("pruning", "low_rank", "healing"),
    needs=_needs,
)
