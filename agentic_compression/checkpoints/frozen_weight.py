"""Gradients through layers whose quantized weight is fixed."""

from __future__ import annotations

from typing import Any, Protocol

import torch

__all__ = ["FrozenWeight", "apply_frozen"]


class FrozenWeight(Protocol):
    """A layer that multiplies by a fixed weight in its own way."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``(rows, in_features)`` to ``(rows, out_features)`` in the dtype of ``x``, without the bias."""
        ...

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight ``(out_features, in_features)``."""
        ...


def apply_frozen(layer: FrozenWeight, x: torch.Tensor) -> torch.Tensor:
    """``layer.product(x)``, differentiable in ``x``.

    The kernels know no gradients. Backwards the gradient is that of the product with the dequantized weight, as if the
    activations had not been rounded (straight through), and the weight is dequantized again instead of being kept.

    Args:
        layer: the layer; its weight gets no gradient.
        x: ``(rows, in_features)``.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        result: torch.Tensor = _Product.apply(x, layer)
        return result
    return layer.product(x)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: FrozenWeight) -> torch.Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradients[0]
        return gradient @ ctx.layer.dequantize(gradient.dtype), None
