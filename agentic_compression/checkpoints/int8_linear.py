"""A linear layer with int8 weights that multiplies as LLM.int8() does, stored in bitsandbytes' 8-bit format."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from agentic_compression.checkpoints.bitsandbytes_format import bitsandbytes_config
from agentic_compression.checkpoints.frozen_weight import apply_frozen
from agentic_compression.checkpoints.manifest import Int8Module
from agentic_compression.checkpoints.stored import StoredFormat

__all__ = ["FORMAT", "WEIGHT_ONLY_BELOW", "WEIGHT_ONLY_ROWS", "Int8Linear"]

# Measured on AVX-512 with one thread. Rounding activations takes 20 µs however few they are. The kernel that leaves
# them alone takes 5 µs for one row of 256 x 256, 17 µs for 768 x 768, and is the slower way from 28 rows of 256 x 256
# on, 7 of 768 x 768, 8 of 2048 x 2048 and 5 of 2048 x 5632 (but for a single row of that: 270 µs against 180).
WEIGHT_ONLY_ROWS = 4
WEIGHT_ONLY_BELOW = 1 << 21  # multiply-adds
_KERNEL_COLUMNS = 32  # torch's weight-only kernel reads beyond the end of rows that are not whole vectors
_TILE_ELEMENTS = 1 << 18


class Int8Linear(nn.Module):
    """``y = x @ (scale * codes).T + bias`` with int8 codes and one scale an output row.

    LLM.int8() (arXiv:2208.07339): each row of ``x`` is rounded to int8 by its own largest magnitude, the product is an
    integer one, and the columns of ``x`` that hold a magnitude of at least ``threshold`` are left out of both and
    multiplied in floating point with the dequantized columns of the weight.

    On the CPU that product is oneDNN's (``torch._int_mm``, processors with AVX-512). A few rows at a time, as when
    decoding, and small products use torch's weight-only kernel on bfloat16 activations instead: no activation is
    rounded to int8 there, so nothing has to be taken apart; it is quicker and closer to full precision. Where neither
    is quick, tiles of the weight are dequantized. On CUDA bitsandbytes' kernels run, the ones its ``Linear8bitLt``
    calls; without the library the dequantized product stands in.

    Attributes:
        codes: int8 ``(out_features, in_features)``.
        scale: bfloat16 ``(out_features,)``.
        bias: ``(out_features,)`` or None.
        threshold: magnitude from which a column of activations is an outlier; 0: none is.
    """

    stored_kind: ClassVar[str] = "int8"
    codes: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None, threshold: float = 6.0
    ) -> None:
        """Hold a quantized weight.

        Args:
            codes: int8 ``(out_features, in_features)`` in -127..127.
            scale: ``(out_features,)``, numbers that bfloat16 holds exactly.
            bias: ``(out_features,)``.
            threshold: 0 for no outlier path.
        """
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.threshold = threshold
        self.register_buffer("codes", codes.contiguous(), persistent=False)
        self.register_buffer("scale", scale.to(torch.bfloat16), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``(..., in_features)``; returns ``(..., out_features)`` in the dtype of ``x``."""
        y = apply_frozen(self, x.reshape(-1, self.in_features))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``(rows, in_features)`` to ``(rows, out_features)`` by the quickest way for this device and size."""
        if x.device.type == "cuda" and _has_bitsandbytes():
            return self.product_by_bitsandbytes(x)
        if x.device.type == "cpu" and x.shape[0] and torch.backends.cpu.get_cpu_capability() == "AVX512":
            few = x.shape[0] <= WEIGHT_ONLY_ROWS or x.numel() * self.out_features < WEIGHT_ONLY_BELOW
            if few and self.in_features % _KERNEL_COLUMNS == 0:
                narrow = x.to(torch.bfloat16).contiguous()
                return torch.ops.aten._weight_int8pack_mm(narrow, self.codes, self.scale).to(x.dtype)
            return self.product_of_integers(x)
        return self._dequantized_product(x)

    def product_of_integers(self, x: torch.Tensor) -> torch.Tensor:
        """LLM.int8() as the paper has it, for ``(rows, in_features)`` on the CPU."""
        inside, outliers = x, None
        if self.threshold > 0:
            high = x.abs().amax(dim=0) >= self.threshold
            if bool(high.any()):
                outliers = high.nonzero().view(-1)
                inside = x.masked_fill(high, 0)
        codes, scale = round_rows(inside)
        y = torch._int_mm(codes, self.codes.t()).to(torch.float32).mul_(scale).mul_(self.scale)
        if outliers is not None:
            exact = x.dtype if x.dtype == torch.bfloat16 else torch.float32
            part = self.codes.index_select(1, outliers).to(torch.float32) * self.scale[:, None]
            y += x.index_select(1, outliers).to(exact) @ part.to(exact).t()
        return y.to(x.dtype)

    def product_by_bitsandbytes(self, x: torch.Tensor) -> torch.Tensor:
        """The same by bitsandbytes' operators, in float16 as that library computes.

        These are the calls its ``MatMul8bitLt.forward`` makes (bitsandbytes 0.50). Here only their CPU form was run.
        """
        library = importlib.import_module("bitsandbytes")
        half = x.to(torch.float16)
        codes, statistics, outliers = library.functional.int8_vectorwise_quant(half, threshold=self.threshold)
        weight_statistics = self.scale.to(torch.float32) * 127
        if self.threshold > 0:
            y, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
                half, codes, self.codes, statistics, weight_statistics, outliers, None
            )
        else:
            y = torch.ops.bitsandbytes.int8_scaled_mm.default(
                codes, self.codes, statistics, weight_statistics, bias=None, dtype=torch.float16
            )
        return y.to(x.dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight ``(out_features, in_features)``."""
        return (self.codes.to(torch.float32) * self.scale[:, None]).to(dtype)

    @property
    def representation(self) -> Int8Module:
        """The manifest's entry."""
        return Int8Module(threshold=self.threshold)

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """bitsandbytes' form: codes, the largest magnitude ``SCB`` of each row, and 0 for "row by row"."""
        return {
            "weight": self.codes,
            "SCB": self.scale.to(torch.float32) * 127,
            "weight_format": torch.tensor(0, dtype=torch.uint8),
        }

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, threshold={self.threshold}, bias={self.bias is not None}"

    def _dequantized_product(self, x: torch.Tensor) -> torch.Tensor:
        step = max(1, _TILE_ELEMENTS // self.in_features)
        tiles = [
            x
            @ (self.codes[start : start + step].to(torch.float32) * self.scale[start : start + step, None])
            .to(x.dtype)
            .t()
            for start in range(0, self.out_features, step)
        ]
        return torch.cat(tiles, dim=1)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Int8Linear:
        kept = self.scale
        super()._apply(fn, recurse)
        self.scale = kept.to(self.codes.device)  # ``model.to(dtype)`` must not change the numbers the kernel reads
        return self


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to int8 by its largest magnitude.

    Args:
        x: ``(rows, columns)``.

    Returns:
        Codes int8 ``(rows, columns)`` and scales float32 ``(rows, 1)``; a row of zeros gets the least normal scale.
    """
    wide = x.to(torch.float32)
    scale = wide.abs().amax(dim=1, keepdim=True).mul_(1 / 127).clamp_(min=torch.finfo(torch.float32).tiny)
    return (wide / scale).round_().to(torch.int8), scale


@cache
def _has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def _restore(tensors: dict[str, torch.Tensor], representation: Int8Module, linear: nn.Linear) -> Int8Linear:
    return Int8Linear(tensors["weight"], tensors["SCB"] / 127, threshold=representation.threshold)


def _config(modules: dict[str, Any], dense: list[str]) -> dict[str, Any]:
    threshold = next(iter(modules.values())).threshold  # a strategy has one int8 stage, so all have the same
    return bitsandbytes_config(list(modules), dense, load_in_8bit=True, llm_int8_threshold=threshold)


FORMAT = StoredFormat(
    tensor_names=lambda representation: ("weight", "SCB", "weight_format"),
    restore=_restore,
    standard="bitsandbytes-8bit",
    config=_config,
)
