"""Rounding weights to an integer grid: the arithmetic that RTN and GPTQ share."""

from __future__ import annotations

import torch

__all__ = ["dequantize_group", "grid", "round_to_grid", "stored_scale_dtype"]


def stored_scale_dtype(weight_dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type scales are stored in: float16 for a float16 model, else bfloat16.

    Scales are rounded to bfloat16 in both cases, before the codes are computed, so that what is stored, what the CPU
    kernel runs with and what the codes were rounded for are the same numbers.
    """
    return torch.float16 if weight_dtype == torch.float16 else torch.bfloat16


def grid(values: torch.Tensor, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of groups of weights, from their extremes.

    Symmetric: ``scale = max|w| / ((2**bits - 1) / 2)`` with codes in ``[-2**(bits-1), 2**(bits-1) - 1]`` and zero point
    0. Asymmetric: ``scale = (max(w, 0) - min(w, 0)) / (2**bits - 1)`` and the zero point is the code of 0, an integer,
    so that zeros stay exactly zero either way. A group of zeros gets scale 1.

    Args:
        values: float32 ``(…, group)``.
        bits: width of a code.
        symmetric: whether the zero point is 0.

    Returns:
        ``scale`` and ``zero_point``, both float32 ``(…)``; scales are bfloat16 numbers.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if symmetric:
        scale = values.abs().amax(dim=-1) * 2 / (high - low)
    else:
        smallest = values.amin(dim=-1).clamp(max=0)
        scale = (values.amax(dim=-1).clamp(min=0) - smallest) / (high - low)
    scale = scale.to(torch.bfloat16).to(torch.float32)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale)
    if not symmetric:
        zero_point = (torch.round(-smallest / scale) + low).clamp(low, high)
    return scale, zero_point


def round_to_grid(values: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int) -> torch.Tensor:
    """Nearest codes, half to even: float32 of the shape that ``values`` and ``scale`` broadcast to."""
    codes = torch.round(values / scale) + zero_point
    return codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def dequantize_group(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """``scale * (codes - zero_point)``, float32."""
    return (codes - zero_point) * scale
