"""PEFT's LoRA layer for weights with zeros that must stay zero."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraConfig
from torch import nn

__all__ = ["MaskedLora", "sparse_layer"]


class MaskedLora(LoraLinear):
    """``y = x @ (w + m ⊙ (alpha / r) B A).T + bias`` with ``m`` the mask of the weights that are not zero.

    Training sees the mask, so what is merged afterwards is what was trained.
    """

    kept: torch.Tensor

    def __init__(self, base_layer: nn.Linear, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        """Wrap a sparse linear, as PEFT calls it."""
        super().__init__(base_layer, adapter_name, config=config, **kwargs)
        self.register_buffer("kept", base_layer.weight.detach() != 0, persistent=False)

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """The masked change of the weight, ``(out_features, in_features)``."""
        delta: torch.Tensor = super().get_delta_weight(adapter)
        return delta * self.kept

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Apply the layer to ``(..., in_features)``."""
        if self.disable_adapters or self.merged:
            result: torch.Tensor = super().forward(x, *args, **kwargs)
            return result
        base: Any = self.get_base_layer()
        weight = base.weight
        for adapter in self.active_adapters:
            weight = weight + self.get_delta_weight(adapter).to(weight.dtype)
        return nn.functional.linear(x, weight, base.bias)


def sparse_layer(target: nn.Linear, adapter_name: str, config: LoraConfig, **kwargs: Any) -> MaskedLora | None:
    """The masked layer for a linear with zeros; None leaves the others to PEFT."""
    if bool((target.weight != 0).all()):
        return None
    return MaskedLora(target, adapter_name, config, **kwargs)
