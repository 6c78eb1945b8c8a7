"""A quantized layer that stays as it is, with a low-rank correction in 16 bits beside it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from agentic_compression.checkpoints.manifest import AdaptedModule
from agentic_compression.checkpoints.stored import StoredFormat

__all__ = ["FORMAT", "AdaptedLinear"]


class AdaptedLinear(nn.Module):
    """``y = base(x) + up(down(x))`` (LoRA, arXiv:2106.09685, equation 3, with ``alpha / r`` multiplied into ``up``).

    The base keeps its codes, so the sum of the two weights is never stored: it has no place on the base's grid. Factors
    are kept in 16 bits and multiplied in the type of ``x``.
    """

    stored_kind: ClassVar[str] = "adapted"

    def __init__(self, base: nn.Module, down: nn.Linear, up: nn.Linear) -> None:
        """Join a layer and its correction.

        Args:
            base: maps ``(..., in_features)`` to ``(..., out_features)``; carries the bias.
            down: maps to ``(..., rank)``; no bias.
            up: maps ``(..., rank)`` to ``(..., out_features)``; no bias.
        """
        super().__init__()
        self.in_features, self.out_features = down.in_features, up.out_features
        self.base = base
        self.down = down
        self.up = up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``(..., in_features)``; returns ``(..., out_features)`` in the dtype of ``x``."""
        thin = nn.functional.linear(x, self.down.weight.to(x.dtype))
        result: torch.Tensor = self.base(x) + nn.functional.linear(thin, self.up.weight.to(x.dtype))
        return result

    @property
    def representation(self) -> AdaptedModule:
        """The manifest's entry."""
        dtype = "float16" if self.down.weight.dtype == torch.float16 else "bfloat16"
        return AdaptedModule(rank=self.down.out_features, dtype=dtype)

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """Nothing of its own: base and factors are stored by themselves."""
        return {}


def _restore(tensors: dict[str, torch.Tensor], representation: AdaptedModule, linear: nn.Linear) -> AdaptedLinear:
    like: dict[str, Any] = {"device": "meta", "dtype": getattr(torch, representation.dtype), "bias": False}
    down = nn.Linear(linear.in_features, representation.rank, **like)
    up = nn.Linear(representation.rank, linear.out_features, **like)
    return AdaptedLinear(linear, down, up)


FORMAT = StoredFormat(tensor_names=lambda _: (), restore=_restore)
