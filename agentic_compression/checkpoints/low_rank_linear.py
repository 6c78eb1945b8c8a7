"""A linear layer stored and run as two thin ones."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["LowRankLinear"]


class LowRankLinear(nn.Module):
    """``y = up(down(x))``: ``down`` maps ``in_features`` to ``rank``, ``up`` maps ``rank`` to ``out_features``.

    ``down`` has no bias; ``up`` carries the bias of the layer it stands for. Both are modules of their own, so that a
    later stage can quantize them like any other linear.
    """

    def __init__(self, down: nn.Module, up: nn.Module) -> None:
        """Join two layers.

        Args:
            down: maps ``(..., in_features)`` to ``(..., rank)``.
            up: maps ``(..., rank)`` to ``(..., out_features)``.
        """
        super().__init__()
        self.down = down
        self.up = up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply both layers to ``(..., in_features)``; returns ``(..., out_features)``."""
        result: torch.Tensor = self.up(self.down(x))
        return result
