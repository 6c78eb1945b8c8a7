"""A linear layer stored and run as two thin ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from agentic_compression.checkpoints.manifest import LowRankModule
from agentic_compression.checkpoints.stored import StoredFormat

__all__ = ["FORMAT", "LowRankLinear"]


class LowRankLinear(nn.Module):
    """``y = up(down(x))``: ``down`` maps ``in_features`` to ``rank``, ``up`` maps ``rank`` to ``out_features``.

    ``down`` has no bias; ``up`` carries the bias of the layer it stands for. Both are modules of their own, so that a
    later stage can quantize them like any other linear.
    """

    stored_kind: ClassVar[str] = "low_rank"

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

    @property
    def representation(self) -> LowRankModule:
        """The manifest's entry."""
        down: Any = self.down
        return LowRankModule(rank=int(down.out_features))

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """Nothing of its own: the two linears are stored by themselves."""
        return {}


def _restore(tensors: dict[str, torch.Tensor], representation: LowRankModule, linear: nn.Linear) -> LowRankLinear:
    like: dict[str, Any] = {"device": "meta", "dtype": linear.weight.dtype}
    down = nn.Linear(linear.in_features, representation.rank, bias=False, **like)
    up = nn.Linear(representation.rank, linear.out_features, bias=linear.bias is not None, **like)
    return LowRankLinear(down, up)


FORMAT = StoredFormat(tensor_names=lambda _: (), restore=_restore)
