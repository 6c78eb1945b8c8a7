"""A linear layer stored and run as two thin ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from agentic_compression.checkpoints.manifest import LowRankModule
from agentic_compression.checkpoints.stored import StoredFormat

__all__ = ["FORMAT", "LowRankLinear", "folded"]


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


def folded(pair: LowRankLinear) -> nn.Linear:
    """One dense linear that does what the pair does, with its bias, for runtimes that know no low-rank layers.

    The product is computed in float32 and rounded once to the dtype of the second factor, or of the first when the
    second is quantized; a quantized factor counts as the weight it stands for.
    """
    down: Any = pair.down
    up: Any = pair.up
    kept = next((factor.weight.dtype for factor in (up, down) if isinstance(factor, nn.Linear)), torch.float32)
    weight = _dense(up) @ _dense(down)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.to(kept), requires_grad=False)
    linear.bias = up.bias
    return linear


def _dense(factor: Any) -> torch.Tensor:
    weight = factor.weight.detach() if isinstance(factor, nn.Linear) else factor.dequantize(torch.float32)
    result: torch.Tensor = weight.to(torch.float32)
    return result


def _restore(tensors: dict[str, torch.Tensor], representation: LowRankModule, linear: nn.Linear) -> LowRankLinear:
    like: dict[str, Any] = {"device": "meta", "dtype": linear.weight.dtype}
    down = nn.Linear(linear.in_features, representation.rank, bias=False, **like)
    up = nn.Linear(representation.rank, linear.out_features, bias=linear.bias is not None, **like)
    return LowRankLinear(down, up)


FORMAT = StoredFormat(tensor_names=lambda _: (), restore=_restore)
