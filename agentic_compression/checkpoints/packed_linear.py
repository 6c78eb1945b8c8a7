"""A linear layer that stays packed while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn

from agentic_compression.checkpoints.frozen_weight import apply_frozen
from agentic_compression.checkpoints.int4_kernel import (
    DEFAULT_BLOCK_ROWS,
    kernel_block_rows,
    kernel_group,
    pack_nibbles,
    unpack_nibbles,
)
from agentic_compression.checkpoints.manifest import PackedModule
from agentic_compression.checkpoints.quantized import QuantizedTensor, pack, packed_names, quantization_config, unpack
from agentic_compression.checkpoints.stored import StoredFormat

__all__ = ["DEQUANTIZE_FROM_ROWS", "FORMAT", "PackedLinear"]

# Measured on AVX-512, hidden 256, MLP 768 (docs/decisions.md): below this many rows of x the 4-bit kernel is quicker.
DEQUANTIZE_FROM_ROWS = 128
_TILE_ELEMENTS = 1 << 18
_BOTH_MIDDLES = 16 * 8 + 8  # the kernel subtracts 8 from the codes of either plane


class PackedLinear(nn.Module):
    """``y = x @ w.T + bias`` with ``w`` kept as 4-bit codes, or as two 4-bit planes when it has more than 4 bits.

    A code ``c`` of ``b <= 4`` bits, in ``[-2**(b-1), 2**(b-1) - 1]``, becomes the nibble ``q = c + 8``, so that
    ``w = scale * (c - z) = (q - 8) * scale + zero`` with ``zero = -z * scale``: 2- and 3-bit codes use the middle of
    the kernel's 16 levels and the zero point does not move. A code of 5 to 8 bits with ``u = c + 128 = 16 h + l`` and
    ``z + 128 = 16 zh + zl`` is ``w = 16 scale * (h - zh) + scale * (l - zl)``: two planes side by side, and ``x`` twice
    side by side, make one call of the same kernel with one accumulation in float32. Only the sum of the two planes'
    zeros matters there, ``scale * (136 - (z + 128))``, an 8-bit integer times a bfloat16 number: the first plane has it
    rounded to bfloat16 and the second what that left, which bfloat16 holds exactly.

    With few rows of ``x`` (decoding, short prefill) on the CPU the kernel of :mod:`int4_kernel` runs, its activations
    and result rounded to bfloat16; from ``DEQUANTIZE_FROM_ROWS`` rows on, on other devices, and for scales that
    bfloat16 cannot hold exactly, tiles of the weight are dequantized exactly and multiplied in the dtype of ``x``.
    Groups are padded with zero inputs to a multiple of 32 and rows to a whole block, so that every shape is served.

    Attributes:
        codes: uint8 ``(blocks, planes * groups * padded_group, block_rows / 2)``.
        scales_and_zeros: ``(planes * groups * padded_group / kernel_group, padded_rows, 2)``, bfloat16 when that holds
            the scales exactly, else float32.
        bias: ``(out_features,)`` or None.
    """

    stored_kind: ClassVar[str] = "packed"
    codes: torch.Tensor
    scales_and_zeros: torch.Tensor

    def __init__(self, weight: QuantizedTensor, bias: torch.Tensor | None = None) -> None:
        """Lay a quantized weight out for running; keeps no reference to ``weight``.

        Args:
            weight: codes ``(out_features, in_features)``, scales and zero points.
            bias: ``(out_features,)``.
        """
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.bits = weight.bits
        self.symmetric = weight.zero_point is None
        self.groups = weight.scale.shape[1]
        self.group_size = weight.group_size
        self.planes = 1 if weight.bits <= 4 else 2
        self.padded_group = -(-self.group_size // 32) * 32
        self.kernel_group = kernel_group(self.padded_group)
        self.scale_dtype = weight.scale.dtype
        self.block_rows = kernel_block_rows() or DEFAULT_BLOCK_ROWS
        self.register_buffer("codes", _lay_out_codes(self, weight.codes), persistent=False)
        self.register_buffer("scales_and_zeros", _lay_out_scales(self, weight), persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def padded_rows(self) -> int:
        """Output features rounded up to whole blocks."""
        return -(-self.out_features // self.block_rows) * self.block_rows

    @property
    def padded_columns(self) -> int:
        """Input features with every group rounded up to a multiple of 32."""
        return self.groups * self.padded_group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to ``(..., in_features)``; returns ``(..., out_features)`` in the dtype of ``x``."""
        y = apply_frozen(self, x.reshape(-1, self.in_features))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """``(rows, in_features)`` to ``(rows, out_features)`` in the dtype of ``x``, without the bias."""
        if x.shape[0] < DEQUANTIZE_FROM_ROWS and self._kernel_applies(x):
            return self._kernel_product(x)
        return self._dequantized_product(x)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight ``(out_features, in_features)``, computed in float32 and rounded once to ``dtype``."""
        return self._tile(0, self.codes.shape[0])[:, : self.out_features].t().to(dtype)

    def quantized(self) -> QuantizedTensor:
        """The codes, scales and zero points this layer was built from, exactly."""
        nibbles = unpack_nibbles(self.codes)[: self.out_features]
        grouped = nibbles.view(self.out_features, self.planes, self.groups, self.padded_group)[..., : self.group_size]
        planes = grouped.reshape(self.out_features, self.planes, self.in_features).to(torch.int16)
        codes = planes[:, 0] - 8 if self.planes == 1 else 16 * planes[:, 0] + planes[:, 1] - 128
        scale, zero = self._scales(0, self.padded_rows)  # (planes, groups, rows)
        zero_point = None
        if not self.symmetric:
            signed = zero[0] - 8 if self.planes == 1 else 16 * zero[0] + zero[1] - 128
            zero_point = signed[:, : self.out_features].T.to(torch.int8).contiguous()
        return QuantizedTensor(
            codes=codes.to(torch.int8),
            scale=scale[-1, :, : self.out_features].T.to(self.scale_dtype).contiguous(),
            zero_point=zero_point,
            bits=self.bits,
        )

    @property
    def representation(self) -> PackedModule:
        """The manifest's entry; a group as long as the row is written as -1."""
        group_size = -1 if self.groups == 1 else self.group_size
        return PackedModule(bits=self.bits, group_size=group_size, symmetric=self.symmetric)

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of the ``pack-quantized`` format."""
        return pack(self.quantized())

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f"{self.in_features}, {self.out_features}, bits={self.bits}, group_size={self.group_size}, "
            f"symmetric={self.symmetric}, bias={self.bias is not None}"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedLinear:
        kept = self.scales_and_zeros  # ``model.to(dtype)`` must neither widen nor round the kernel's scales
        super()._apply(fn, recurse)
        self.scales_and_zeros = kept.to(self.scales_and_zeros.device)
        return self

    def _kernel_applies(self, x: torch.Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and self.scales_and_zeros.dtype == torch.bfloat16
            and self.block_rows == kernel_block_rows()
        )

    def _kernel_product(self, flat: torch.Tensor) -> torch.Tensor:
        x = flat.to(torch.bfloat16).contiguous()
        if self.padded_group != self.group_size:
            grouped = x.view(-1, self.groups, self.group_size)
            x = nn.functional.pad(grouped, (0, self.padded_group - self.group_size)).view(-1, self.padded_columns)
        if self.planes == 2:
            x = torch.cat((x, x), dim=1)
        codes = self.codes.view(self.padded_rows, -1)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, self.kernel_group, self.scales_and_zeros)
        return y[:, : self.out_features].to(flat.dtype)

    def _dequantized_product(self, flat: torch.Tensor) -> torch.Tensor:
        blocks = self.codes.shape[0]
        step = max(1, _TILE_ELEMENTS // (self.block_rows * self.codes.shape[1]))
        tiles = [flat @ self._tile(start, min(start + step, blocks)).to(flat.dtype) for start in range(0, blocks, step)]
        y = tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)
        return y[:, : self.out_features].contiguous()

    def _tile(self, first: int, last: int) -> torch.Tensor:
        """Blocks ``first`` to ``last`` dequantized: float32 ``(in_features, rows)``, exact."""
        packed = self.codes[first:last].transpose(0, 1)  # (columns, blocks, half)
        half = packed.shape[2]
        w = torch.empty((packed.shape[0], last - first, 2 * half), dtype=torch.float32, device=packed.device)
        w[..., :half] = packed & 15
        w[..., half:] = packed >> 4
        rows = (last - first) * self.block_rows
        w = w.view(self.planes, self.groups, self.padded_group, rows)
        scale, zero = self._scales(first * self.block_rows, last * self.block_rows)
        w.sub_(zero[:, :, None, :]).mul_(scale[:, :, None, :])
        w = w[0] if self.planes == 1 else w[0].add_(w[1])
        return w[:, : self.group_size].reshape(self.in_features, rows)

    def _scales(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and integer zero points in nibble units, both float32 ``(planes, groups, rows)``, of a range of rows.

        What is stored may have been rounded, but the integer it came from is at most 136 and comes back exactly.
        """
        stored = self.scales_and_zeros.view(self.planes, self.groups, -1, self.padded_rows, 2)
        pair = stored[:, :, 0, first:last].to(torch.float32)
        scale = pair[..., 0]
        safe = torch.where(scale == 0, torch.ones_like(scale), scale)
        if self.planes == 1:
            return scale, 8 - torch.round(pair[..., 1] / safe)
        unsigned = _BOTH_MIDDLES - torch.round(pair[..., 1].sum(dim=0) / safe[1])
        unsigned = torch.where(scale[1] == 0, 128.0, unsigned)  # rows of padding
        high = torch.floor(unsigned / 16)
        return scale, torch.stack((high, unsigned - 16 * high))


def _lay_out_codes(layer: PackedLinear, codes: torch.Tensor) -> torch.Tensor:
    out, half = layer.out_features, layer.block_rows // 2
    packed = torch.empty(
        (layer.padded_rows // layer.block_rows, layer.planes * layer.padded_columns, half),
        dtype=torch.uint8,
        device=codes.device,
    )
    for block in range(packed.shape[0]):  # by blocks, so that no second full-size copy exists
        rows = codes[block * layer.block_rows : (block + 1) * layer.block_rows].to(torch.int16)
        unsigned = rows + (8 if layer.planes == 1 else 128)
        planes = [unsigned] if layer.planes == 1 else [unsigned >> 4, unsigned & 15]
        nibbles = torch.full(
            (layer.block_rows, layer.planes, layer.groups, layer.padded_group),
            8,
            dtype=torch.uint8,
            device=codes.device,
        )
        for index, plane in enumerate(planes):
            grouped = plane.to(torch.uint8).view(-1, layer.groups, layer.group_size)
            nibbles[: min(layer.block_rows, out - block * layer.block_rows), index, :, : layer.group_size] = grouped
        packed[block] = pack_nibbles(nibbles.view(layer.block_rows, -1), layer.block_rows)[0]
    return packed


def _lay_out_scales(layer: PackedLinear, weight: QuantizedTensor) -> torch.Tensor:
    scale = weight.scale.to(torch.float32)
    zero_point = torch.zeros_like(scale) if weight.zero_point is None else weight.zero_point.to(torch.float32)
    if layer.planes == 1:
        scales, zeros = [scale], [-zero_point * scale]
    else:
        total = (_BOTH_MIDDLES - (zero_point + 128)) * scale
        rounded = total.to(torch.bfloat16).to(torch.float32)
        scales, zeros = [16 * scale, scale], [rounded, total - rounded]
    pairs: Any = torch.stack((torch.stack(scales), torch.stack(zeros)), dim=-1)  # (planes, out, groups, 2)
    pairs = nn.functional.pad(pairs, (0, 0, 0, 0, 0, layer.padded_rows - layer.out_features))
    repeats = layer.padded_group // layer.kernel_group
    pairs = pairs.permute(0, 2, 1, 3).repeat_interleave(repeats, dim=1)  # (planes, groups * repeats, rows, 2)
    exact = torch.equal(scale.to(torch.bfloat16).to(torch.float32), scale)
    kept = torch.bfloat16 if exact else torch.float32
    return pairs.reshape(-1, layer.padded_rows, 2).to(kept).contiguous()


def _restore(tensors: dict[str, torch.Tensor], representation: PackedModule, linear: nn.Linear) -> PackedLinear:
    return PackedLinear(unpack(tensors, representation.bits))


FORMAT = StoredFormat(
    tensor_names=lambda representation: packed_names(representation.symmetric),
    restore=_restore,
    standard="compressed-tensors",
    config=quantization_config,
)
