"""Rounding weights to an integer grid: the arithmetic that RTN and GPTQ share."""

from __future__ import annotations

import torch

__all__ = ["dequantize_group", "grid", "round_to_grid", "round_up_to_bfloat16", "smallest_scale", "stored_scale_dtype"]

_CLIPPING_STEPS = 13
_CLIPPING_STEP = 0.04
_ERROR_NORM = 2.4


def stored_scale_dtype(weight_dtype: torch.dtype) -> torch.dtype:
    """The 16-bit type scales are stored in: float16 for a float16 model, else bfloat16.

    Scales are rounded to bfloat16 in both cases, before the codes are computed, so that what is stored, what the CPU
    kernel runs with and what the codes were rounded for are the same numbers.
    """
    return torch.float16 if weight_dtype == torch.float16 else torch.bfloat16


def smallest_scale(stored: torch.dtype) -> float:
    """The least scale there is in a type that scales are stored in.

    Float16 numbers lie 2⁻²⁴ apart near zero, so from 2⁻¹⁷ on it holds all bfloat16 numbers with their 8 bits; a smaller
    scale would be rounded once more when it is stored, after the codes were computed for it.
    """
    return 2.0**-17 if stored == torch.float16 else 0.0


def round_up_to_bfloat16(values: torch.Tensor) -> torch.Tensor:
    """The least bfloat16 numbers that are not below these: a scale from an extreme must still reach it.

    Args:
        values: float32, not negative.

    Returns:
        float32.
    """
    rounded = values.to(torch.bfloat16)
    above = (rounded.view(torch.int16) + 1).view(torch.bfloat16)  # the next bit pattern is the next number
    return torch.where(rounded.to(torch.float32) < values, above, rounded).to(torch.float32)


def grid(
    values: torch.Tensor, bits: int, symmetric: bool, *, least_error: bool = False, smallest: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of groups of weights, from their extremes or from extremes drawn in.

    Symmetric: ``scale = max|w| / ((2**bits - 1) / 2)`` with codes in ``[-2**(bits-1), 2**(bits-1) - 1]`` and zero point
    0. Asymmetric: ``scale = (max(w, 0) - min(w, 0)) / (2**bits - 1)`` and the zero point is the code of 0, an integer,
    so that zeros stay exactly zero either way. A group of zeros gets scale 1.

    With ``least_error`` the extremes are multiplied by 1, 0.96 … 0.52 and each group takes the first factor with the
    least sum of ``|error|**2.4``, the norm that GPTQ's authors use in their code.

    Args:
        values: float32 ``(…, group)``.
        bits: width of a code.
        symmetric: whether the zero point is 0.
        least_error: whether extremes may be clipped.
        smallest: scale, of groups that are not all zero (see :func:`smallest_scale`).

    Returns:
        ``scale`` and ``zero_point``, both float32 ``(…)``; scales are bfloat16 numbers.
    """
    lowest, largest = values.amin(dim=-1).clamp(max=0), values.amax(dim=-1).clamp(min=0)
    best = _grid_between(lowest, largest, bits, symmetric, smallest)
    if not least_error:
        return best
    least = _rounding_error(values, *best, bits)
    for step in range(1, _CLIPPING_STEPS):
        kept = 1 - _CLIPPING_STEP * step
        tried = _grid_between(lowest * kept, largest * kept, bits, symmetric, smallest)
        error = _rounding_error(values, *tried, bits)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1])
    return best


def _grid_between(
    lowest: torch.Tensor, largest: torch.Tensor, bits: int, symmetric: bool, smallest: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid that reaches from the lowest, at most 0, to the largest weight, at least 0."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (torch.maximum(largest, -lowest) * 2 if symmetric else largest - lowest) / (high - low)
    scale = scale.to(torch.bfloat16).to(torch.float32)
    scale = torch.where(scale > 0, scale.clamp(min=smallest), torch.ones_like(scale))
    zero_point = torch.zeros_like(scale)
    if not symmetric:
        zero_point = (torch.round(-lowest / scale) + low).clamp(low, high)
    return scale, zero_point


def _rounding_error(values: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int) -> torch.Tensor:
    scale, zero_point = scale[..., None], zero_point[..., None]
    restored = dequantize_group(round_to_grid(values, scale, zero_point, bits), scale, zero_point)
    return restored.sub_(values).abs_().pow_(_ERROR_NORM).sum(dim=-1)


def round_to_grid(values: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int) -> torch.Tensor:
    """Nearest codes, half to even: float32 of the shape that ``values`` and ``scale`` broadcast to."""
    codes = torch.round(values / scale) + zero_point
    return codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def dequantize_group(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """``scale * (codes - zero_point)``, float32."""
    return (codes - zero_point) * scale
