"""A packed linear layer while it trains: float weights rounded to the layer's own grid in every forward pass.

The weight that is multiplied is ``w = s (clamp(round(v / s) + z, low, high) - z)``, exactly what
:class:`~agentic_compression.checkpoints.packed_linear.PackedLinear` holds for these codes. ``v`` are latent weights;
rounding passes gradients through unchanged (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432). Scales
and zero points are learned too, as in LSQ (Esser et al. 2020, arXiv:1902.08153) and EfficientQAT (Chen et al. 2024,
arXiv:2407.11062). Scales are rounded to bfloat16 and zero points to integers in the forward pass, so that the trained
model is the one that will be stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.checkpoints.quantized import QuantizedTensor
from agentic_compression.methods.rounding import smallest_scale

__all__ = ["FakeQuantizedLinear"]

_INSIDE = 0.49
_SMALLEST_SCALE = 1e-30


class FakeQuantizedLinear(nn.Module):
    """``y = x @ w.T + bias`` with ``w`` rounded to the grid of the packed layer that it takes the place of.

    Attributes:
        latent: float32 ``(out_features, in_features)``.
        log_scale: natural logarithm of the scales, ``(out_features, groups)``: a step changes a scale by a factor.
        zero: zero points before rounding, ``(out_features, groups)``; None when symmetric.
        sign: of the scales, which does not train.
    """

    sign: torch.Tensor

    def __init__(self, packed: PackedLinear, original: torch.Tensor | None = None) -> None:
        """Start where the packed layer is: the first forward pass multiplies exactly its weight.

        Args:
            packed: the layer.
            original: the uncompressed weight, where there is one of the same shape. Latent weights start from it, each
                moved into the cell of the code that it has now, so that weights near the edge of their cell are the
                first to change; without it they start in the middle of their cells.
        """
        super().__init__()
        weight = packed.quantized()
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.bits, self.groups, self.scale_dtype = packed.bits, packed.groups, packed.scale_dtype
        scale = weight.scale.to(torch.float32)
        self.smallest = max(_SMALLEST_SCALE, smallest_scale(self.scale_dtype))
        self.register_buffer("sign", torch.where(scale < 0, -1.0, 1.0), persistent=False)
        self.log_scale = nn.Parameter(scale.abs().clamp(min=self.smallest).log())
        self.zero = None if weight.zero_point is None else nn.Parameter(weight.zero_point.to(torch.float32))
        latent = weight.dequantize()
        if original is not None and original.shape == latent.shape:
            each = scale.abs().repeat_interleave(weight.group_size, dim=1) * _INSIDE
            latent = torch.minimum(torch.maximum(original.to(torch.float32), latent - each), latent + each)
        self.latent = nn.Parameter(latent)
        self.bias = None if packed.bias is None else nn.Parameter(packed.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``(..., in_features)``; returns ``(..., out_features)``."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.weight().to(x.dtype), bias)

    def weight(self) -> torch.Tensor:
        """The rounded weight, float32 ``(out_features, in_features)``, differentiable."""
        scale = self.sign * _RoundedScale.apply(self.log_scale, self.smallest)
        zero = torch.zeros_like(scale) if self.zero is None else self.zero
        rounded: torch.Tensor = _FakeQuantize.apply(self.latent, scale, zero, self.bits)
        return rounded

    def packed(self) -> PackedLinear:
        """The packed layer of the present weights: same bits, groups, symmetry and types as the one it started from."""
        with torch.no_grad():
            scale = self.sign * _rounded_scale(self.log_scale, self.smallest)
            zero = torch.zeros_like(scale) if self.zero is None else self.zero
            codes, integer, _ = _codes(self.latent, scale, zero, self.bits)
            quantized = QuantizedTensor(
                codes=codes.view(self.out_features, self.in_features).to(torch.int8),
                scale=scale.to(self.scale_dtype),
                zero_point=None if self.zero is None else integer[..., 0].to(torch.int8),
                bits=self.bits,
            )
            return PackedLinear(quantized, None if self.bias is None else self.bias.detach())


def _rounded_scale(log_scale: torch.Tensor, smallest: float) -> torch.Tensor:
    return log_scale.exp().clamp(min=smallest).to(torch.bfloat16).to(torch.float32)


def _codes(
    latent: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes ``(out, groups, group)``, integer zero points ``(out, groups, 1)`` and where no code was clamped."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    integer = torch.round(zero).clamp(low, high)[..., None]
    grouped = latent.view(scale.shape[0], scale.shape[1], -1)
    wanted = torch.round(grouped / scale[..., None]) + integer
    codes = wanted.clamp(low, high)
    return codes, integer, codes == wanted


class _RoundedScale(torch.autograd.Function):
    """``exp`` rounded to bfloat16; the gradient is that of ``exp``."""

    @staticmethod
    def forward(ctx: Any, log_scale: torch.Tensor, smallest: float) -> torch.Tensor:
        scale = _rounded_scale(log_scale, smallest)
        ctx.save_for_backward(scale)
        return scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0] * scale, None


class _FakeQuantize(torch.autograd.Function):
    """The rounded weight; keeps its inputs only, and computes the codes again for the gradient.

    With ``c`` the clamped code and ``i`` 1 where it was not clamped, ``dw/dv = i``, ``dw/ds = c - z - i v / s`` (LSQ,
    equation 3, with a zero point) and ``dw/dz = -s (1 - i)``.
    """

    @staticmethod
    def forward(ctx: Any, latent: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
        ctx.save_for_backward(latent, scale, zero)
        ctx.bits = bits
        codes, integer, _ = _codes(latent, scale, zero, bits)
        return ((codes - integer) * scale[..., None]).view_as(latent)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        latent, scale, zero = ctx.saved_tensors
        codes, integer, inside = _codes(latent, scale, zero, ctx.bits)
        gradient = gradients[0].view_as(codes)
        passed = gradient * inside
        by_scale = (gradient * (codes - integer)).sum(-1) - (passed * latent.view_as(codes)).sum(-1) / scale
        by_zero = -scale * (gradient - passed).sum(-1)
        return passed.view_as(latent), by_scale, by_zero, None
