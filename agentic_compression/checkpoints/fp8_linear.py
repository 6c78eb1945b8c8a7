"""A linear layer with 8-bit floating-point weights (E4M3), stored in compressed-tensors' ``float-quantized`` format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from agentic_compression.checkpoints.frozen_weight import apply_frozen
from agentic_compression.checkpoints.manifest import Fp8Module
from agentic_compression.checkpoints.stored import StoredFormat

__all__ = ["FORMAT", "LARGEST", "Fp8Linear", "round_rows_to_e4m3"]

LARGEST = 448.0  # of E4M3; it has no infinities (Micikevicius et al. 2022, arXiv:2209.05433)
_ALIGNMENT = 16  # elements, of both dimensions of the weight, for the tensor cores' product
_TILE_ELEMENTS = 1 << 18


class Fp8Linear(nn.Module):
    """``y = x @ (scale * codes).T + bias``; each row of ``x`` is rounded to E4M3 too, by its own largest magnitude.

    On CUDA devices of compute capability 8.9 and later the product runs on the tensor cores (``torch._scaled_mm``,
    scales a row on both sides) where 16 divides both dimensions. Everywhere else the same numbers are multiplied after
    both sides were dequantized, which saves memory and no time.

    Attributes:
        codes: the bytes of the E4M3 numbers, uint8 ``(out_features, in_features)``; kept as bytes so that
            ``model.to(dtype)`` leaves them alone.
        scale: bfloat16 ``(out_features, 1)``.
        bias: ``(out_features,)`` or None.
    """

    stored_kind: ClassVar[str] = "fp8"
    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Hold a quantized weight.

        Args:
            codes: float8_e4m3fn ``(out_features, in_features)``.
            scale: ``(out_features, 1)``, numbers that bfloat16 holds exactly.
            bias: ``(out_features,)``.
        """
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes.contiguous().view(torch.uint8), persistent=False)
        self.register_buffer("scale", scale.to(torch.bfloat16), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight_e4m3(self) -> torch.Tensor:
        """The codes as numbers: float8_e4m3fn ``(out_features, in_features)``, the same memory."""
        return self.codes.view(torch.float8_e4m3fn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``(..., in_features)``; returns ``(..., out_features)`` in the dtype of ``x``."""
        y = apply_frozen(self, x.reshape(-1, self.in_features))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``(rows, in_features)`` to ``(rows, out_features)`` in the dtype of ``x``."""
        aligned = self.in_features % _ALIGNMENT == 0 and self.out_features % _ALIGNMENT == 0
        if aligned and x.shape[0] and x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) >= (8, 9):
            return self.product_on_tensor_cores(x)
        rounded, x_scale = round_rows_to_e4m3(x)
        near = (rounded.to(torch.float32) * x_scale).to(x.dtype)
        step = max(1, _TILE_ELEMENTS // self.in_features)
        tiles = [near @ self._rows(first, first + step, x.dtype).t() for first in range(0, self.out_features, step)]
        return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)

    def product_on_tensor_cores(self, x: torch.Tensor) -> torch.Tensor:
        """The same in one call, accumulated in float32 and rounded to bfloat16."""
        rounded, x_scale = round_rows_to_e4m3(x)
        weight_scale = self.scale.to(torch.float32).t().contiguous()
        y = torch._scaled_mm(rounded, self.weight_e4m3.t(), x_scale, weight_scale, out_dtype=torch.bfloat16)
        return y.to(x.dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight ``(out_features, in_features)``."""
        return self._rows(0, self.out_features, dtype)

    @property
    def representation(self) -> Fp8Module:
        """The manifest's entry."""
        return Fp8Module()

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """compressed-tensors' form."""
        return {"weight": self.weight_e4m3, "weight_scale": self.scale}

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def _rows(self, first: int, last: int, dtype: torch.dtype) -> torch.Tensor:
        return (self.weight_e4m3[first:last].to(torch.float32) * self.scale[first:last]).to(dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Fp8Linear:
        kept = self.scale
        super()._apply(fn, recurse)
        self.scale = kept.to(self.codes.device)  # ``model.to(dtype)`` must not change the numbers
        return self


def round_rows_to_e4m3(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to E4M3 by its largest magnitude.

    Args:
        x: ``(rows, columns)``.

    Returns:
        float8_e4m3fn ``(rows, columns)`` and scales float32 ``(rows, 1)``; a row of zeros gets the least normal scale.
    """
    wide = x.to(torch.float32)
    scale = wide.abs().amax(dim=1, keepdim=True).mul_(1 / LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
    # Clamped: what the division rounds above the largest number must not become NaN, which some devices make of it.
    return (wide / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def _restore(tensors: dict[str, torch.Tensor], representation: Fp8Module, linear: nn.Linear) -> Fp8Linear:
    return Fp8Linear(tensors["weight"], tensors["weight_scale"])


def _config(modules: dict[str, Any], dense: list[str]) -> dict[str, Any]:
    """Weights by output channel, activations by token and on the fly, as vLLM's FP8 linears expect."""
    common = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": common | {"strategy": "channel", "dynamic": False, "observer": "minmax"},
                "input_activations": common | {"strategy": "token", "dynamic": True, "observer": None},
                "output_activations": None,
                "format": "float-quantized",
            }
        },
        "ignore": sorted(dense),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


FORMAT = StoredFormat(
    tensor_names=lambda representation: ("weight", "weight_scale"),
    restore=_restore,
    standard="compressed-tensors-fp8",
    config=_config,
)
