"""A linear layer with 4-bit NormalFloat weights, stored in bitsandbytes' 4-bit format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from agentic_compression.checkpoints.bitsandbytes_format import bitsandbytes_config
from agentic_compression.checkpoints.frozen_weight import apply_frozen
from agentic_compression.checkpoints.manifest import Nf4Module
from agentic_compression.checkpoints.nf4_kernel import BLOCK_ROWS, NF4_LEVELS, nf4_kernel, pack_rows, unpack_rows
from agentic_compression.checkpoints.stored import StoredFormat

__all__ = ["BLOCK", "FORMAT", "NESTED_BLOCK", "Nf4Linear", "Nf4Tensor", "dynamic_levels"]

BLOCK = 64
NESTED_BLOCK = 256
_ZERO_PAIR = 0x77  # code 7 is zero
_SMALLEST_KERNEL_BLOCK = 32
_TILE_ELEMENTS = 1 << 18
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_STATE = "weight.quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class Nf4Tensor:
    """A weight ``w[i] = level[code[i]] * absmax[i // 64]`` over its elements in row-major order (arXiv:2305.14314).

    Attributes:
        codes: uint8 ``(ceil(elements / 2),)``, the earlier element in the high nibble.
        absmax: largest magnitude of each block: float32 ``(blocks,)``, or uint8 when it is quantized itself.
        nested_absmax: float32, largest magnitude of every 256 block maxima less ``offset``; None when they are not
            quantized.
        offset: mean of the block maxima.
        shape: ``(out_features, in_features)``.
        dtype: of the weight before.
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    nested_absmax: torch.Tensor | None
    offset: float
    shape: tuple[int, int]
    dtype: torch.dtype

    def block_maxima(self) -> torch.Tensor:
        """The block maxima, float32 ``(blocks,)``."""
        if self.nested_absmax is None:
            return self.absmax
        levels = dynamic_levels().to(self.absmax.device)[self.absmax.to(torch.int32)]
        return levels * self.nested_absmax.repeat_interleave(NESTED_BLOCK)[: levels.numel()] + self.offset


@cache
def dynamic_levels() -> torch.Tensor:
    """The 256 levels block maxima are quantized to: bitsandbytes' signed dynamic map, float32, ascending.

    Seven decades; decade ``d`` has ``2**d`` levels a sign, the middles of equal parts of ``[0.1, 1]`` times
    ``10**(d - 6)``; besides them 0 and 1 (arXiv:1511.04561).
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = 10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += middles.tolist() + (-middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


class Nf4Linear(nn.Module):
    """``y = x @ w.T + bias`` with ``w`` kept as 4-bit codes.

    On the CPU bitsandbytes' kernel multiplies with the codes where it is at hand (:mod:`nf4_kernel`), its activations
    and result rounded to bfloat16. Its blocks lie within a row, so it serves widths that 64 or 32 divides; others, and
    machines without it, dequantize tiles of the weight and multiply in the dtype of ``x``. On CUDA the dequantized
    product runs too; its speed was not measured. Block maxima are bfloat16 while running, whichever way: exactly the
    stored ones when these are not quantized, else rounded once more.

    Attributes:
        codes: uint8, ``(padded_rows / 32, in_features / 2, 32)`` for the kernel, else ``(ceil(elements / 2),)``.
        absmax: bfloat16, ``(in_features / kernel_block, padded_rows)`` for the kernel, else ``(blocks,)``.
        absmax_codes: uint8 ``(blocks,)``, the stored block maxima when they are quantized, else None.
        nested_absmax: float32, their scales, else None.
        bias: ``(out_features,)`` or None.
    """

    stored_kind: ClassVar[str] = "nf4"
    codes: torch.Tensor
    absmax: torch.Tensor
    absmax_codes: torch.Tensor | None
    nested_absmax: torch.Tensor | None

    def __init__(self, weight: Nf4Tensor, bias: torch.Tensor | None = None) -> None:
        """Lay a quantized weight out for running.

        Args:
            weight: codes and block maxima; those that are not quantized are numbers that bfloat16 holds exactly.
            bias: ``(out_features,)``.
        """
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.offset = weight.offset
        self.weight_dtype = weight.dtype
        self.kernel_block = math.gcd(self.in_features, BLOCK)
        double = weight.nested_absmax is not None
        self.register_buffer("codes", weight.codes, persistent=False)
        self.register_buffer("absmax", weight.block_maxima().to(torch.bfloat16), persistent=False)
        self.register_buffer("absmax_codes", weight.absmax if double else None, persistent=False)
        self.register_buffer("nested_absmax", weight.nested_absmax, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._lay_out()

    @property
    def for_kernel(self) -> bool:
        """Whether the codes are laid out for the kernel."""
        return self.codes.dim() == 3

    @property
    def padded_rows(self) -> int:
        """Output features rounded up to whole blocks of the kernel."""
        return -(-self.out_features // BLOCK_ROWS) * BLOCK_ROWS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``(..., in_features)``; returns ``(..., out_features)`` in the dtype of ``x``."""
        y = apply_frozen(self, x.reshape(-1, self.in_features))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``(rows, in_features)`` to ``(rows, out_features)`` in the dtype of ``x``."""
        kernel = nf4_kernel() if self.for_kernel and x.shape[0] else None  # it divides by the number of rows
        if kernel is None:
            tiles = [x @ tile.t() for tile in self._tiles(x.dtype)]
            return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)
        y = kernel(x.to(torch.bfloat16).contiguous(), self.codes, self.absmax, self.kernel_block)
        return y[:, : self.out_features].to(x.dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight ``(out_features, in_features)`` as it multiplies, block maxima rounded to bfloat16."""
        return torch.cat(list(self._tiles(dtype)))

    def quantized(self) -> Nf4Tensor:
        """The codes and block maxima this layer was built from, exactly."""
        codes, absmax = self._flat()
        return Nf4Tensor(
            codes=codes,
            absmax=absmax.to(torch.float32) if self.absmax_codes is None else self.absmax_codes,
            nested_absmax=self.nested_absmax,
            offset=self.offset,
            shape=(self.out_features, self.in_features),
            dtype=self.weight_dtype,
        )

    @property
    def only_here(self) -> bool:
        """Whether plain transformers cannot be relied on: bitsandbytes' CPU kernel needs rows of whole blocks."""
        return bool(self.in_features % BLOCK)

    @property
    def representation(self) -> Nf4Module:
        """The manifest's entry."""
        return Nf4Module(double_quant=self.absmax_codes is not None)

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """bitsandbytes' form: codes, block maxima, the tables of levels, and the rest as JSON in a tensor."""
        weight = self.quantized()
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": BLOCK,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "shape": list(weight.shape),
        }
        tensors = {
            "weight": weight.codes.view(-1, 1),
            "weight.absmax": weight.absmax,
            "weight.quant_map": torch.tensor(NF4_LEVELS, dtype=torch.float32),
        }
        if weight.nested_absmax is not None:
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": weight.offset}
            tensors |= {
                "weight.nested_absmax": weight.nested_absmax,
                "weight.nested_quant_map": dynamic_levels().clone(),
            }
        tensors[_STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return tensors

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        double = self.absmax_codes is not None
        return f"{self.in_features}, {self.out_features}, double_quant={double}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Nf4Linear:
        absmax, nested = self.absmax, self.nested_absmax
        super()._apply(fn, recurse)
        # ``model.to(dtype)`` must not change the numbers the kernel reads.
        self.absmax = absmax.to(self.codes.device)
        self.nested_absmax = None if nested is None else nested.to(self.codes.device)
        self._lay_out()
        return self

    def _lay_out(self) -> None:
        """Change to the layout of the kernel where it can run, and back where it cannot."""
        on_cpu = self.codes.device.type == "cpu"
        wanted = on_cpu and self.kernel_block >= _SMALLEST_KERNEL_BLOCK and nf4_kernel() is not None
        if wanted == self.for_kernel:
            return
        if not wanted:
            self.codes, self.absmax = self._flat()
            return
        extra = self.padded_rows - self.out_features
        pairs = self.codes.view(self.out_features, -1)
        pairs = nn.functional.pad(pairs, (0, 0, 0, extra), value=_ZERO_PAIR)
        nibbles = torch.stack((pairs >> 4, pairs & 15), dim=-1).view(self.padded_rows, self.in_features)
        self.codes = pack_rows(nibbles)
        maxima = self.absmax.repeat_interleave(BLOCK // self.kernel_block).view(self.out_features, -1)
        self.absmax = nn.functional.pad(maxima, (0, 0, 0, extra)).t().contiguous()

    def _flat(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes ``(ceil(elements / 2),)`` and bfloat16 block maxima ``(blocks,)`` in row-major order."""
        if not self.for_kernel:
            return self.codes, self.absmax
        nibbles = unpack_rows(self.codes)[: self.out_features].view(-1, 2)
        maxima = self.absmax[:, : self.out_features].t().reshape(-1)
        return (nibbles[:, 0] << 4) | nibbles[:, 1], maxima[:: BLOCK // self.kernel_block].contiguous()

    def _tiles(self, dtype: torch.dtype) -> Any:
        """Rows of the weight, dequantized, some at a time: ``(rows, in_features)`` each."""
        codes, absmax = self._flat()
        pairs = _pairs_of_levels(dtype, codes.device)
        absmax = absmax.to(dtype)
        whole = BLOCK // math.gcd(self.in_features, BLOCK)  # that many rows are whole blocks
        step = max(1, _TILE_ELEMENTS // (self.in_features * whole)) * whole
        for first in range(0, self.out_features, step):
            rows = min(step, self.out_features - first)
            start, end = first * self.in_features, (first + rows) * self.in_features
            picked = codes[start // 2 : -(-end // 2)].to(torch.int32)
            values = pairs.index_select(0, picked).view(dtype)
            values = nn.functional.pad(values, (0, -values.numel() % BLOCK)).view(-1, BLOCK)
            values = values * absmax[start // BLOCK : -(-end // BLOCK), None]
            yield values.view(-1)[: end - start].view(rows, self.in_features)


@cache
def _pairs_of_levels(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The two levels that a byte of codes stands for, as the bits of one integer ``(256,)``: one look-up for both."""
    levels = torch.tensor(NF4_LEVELS, device=device).to(dtype)
    pairs = torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1)
    return pairs.view(torch.int32 if dtype.itemsize == 2 else torch.int64).view(256)


def _tensor_names(representation: Nf4Module) -> tuple[str, ...]:
    names = ("weight", "weight.absmax", "weight.quant_map", _STATE)
    return (*names, "weight.nested_absmax", "weight.nested_quant_map") if representation.double_quant else names


def _restore(tensors: dict[str, torch.Tensor], representation: Nf4Module, linear: nn.Linear) -> Nf4Linear:
    state = json.loads(bytes(tensors[_STATE].tolist()))
    weight = Nf4Tensor(
        codes=tensors["weight"].view(-1),
        absmax=tensors["weight.absmax"],
        nested_absmax=tensors.get("weight.nested_absmax"),
        offset=float(state.get("nested_offset", 0.0)),
        shape=(linear.out_features, linear.in_features),
        dtype=_DTYPES[state["dtype"]],
    )
    return Nf4Linear(weight)


def _config(modules: dict[str, Any], dense: list[str]) -> dict[str, Any]:
    double = next(iter(modules.values())).double_quant  # a strategy has one nf4 stage, so all have the same
    return bitsandbytes_config(
        list(modules), dense, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double
    )


FORMAT = StoredFormat(tensor_names=_tensor_names, restore=_restore, standard="bitsandbytes-4bit", config=_config)
