"""Integer weights with their scales, and the compressed-tensors ``pack-quantized`` form of them on disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from agentic_compression.checkpoints.manifest import PackedModule

__all__ = ["QuantizedTensor", "pack", "packed_names", "quantization_config", "unpack"]

_DEQUANTIZED_AT_ONCE = 1 << 20
_PACKED_AT_ONCE = 1 << 15


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight ``w[o, i] = scale[o, g] * (codes[o, i] - zero_point[o, g])`` with group ``g = i // group_size``.

    Attributes:
        codes: int8 ``(out_features, in_features)``, each in ``[-2**(bits-1), 2**(bits-1) - 1]``.
        scale: float ``(out_features, groups)``, in the dtype it is stored in.
        zero_point: int8 ``(out_features, groups)`` in the same range as the codes, or None when symmetric.
        bits: width of a code, 1 to 8.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None
    bits: int

    @property
    def group_size(self) -> int:
        """Input features that share one scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight ``(out_features, in_features)``, computed in float32 and rounded once to ``dtype``."""
        rows, columns = self.codes.shape
        result = torch.empty((rows, columns), dtype=dtype, device=self.codes.device)
        step = max(1, _DEQUANTIZED_AT_ONCE // columns)
        for start in range(0, rows, step):  # by rows: float32 copies of a whole layer would set the memory peak
            part = slice(start, start + step)
            scale = self.scale[part].to(torch.float32)[..., None]
            grouped = self.codes[part].reshape(-1, scale.shape[1], self.group_size).to(torch.float32)
            if self.zero_point is not None:
                grouped -= self.zero_point[part].to(torch.float32)[..., None]
            result[part] = grouped.mul_(scale).view(-1, columns)
        return result


def packed_names(symmetric: bool) -> tuple[str, ...]:
    """Names below a module of the tensors that hold a packed weight."""
    names = ("weight_packed", "weight_scale", "weight_shape")
    return names if symmetric else (*names, "weight_zero_point")


def pack(weight: QuantizedTensor) -> dict[str, torch.Tensor]:
    """The tensors of compressed-tensors' ``pack-quantized`` format.

    Returns:
        ``weight_packed`` int32 ``(out, ceil(in * bits / 32))``, ``weight_scale`` ``(out, groups)``, ``weight_shape``
        int64 ``(2,)`` and, when asymmetric, ``weight_zero_point`` int32 ``(ceil(out * bits / 32), groups)``.
    """
    tensors = {
        "weight_packed": _pack_rows(weight),
        "weight_scale": weight.scale.contiguous(),
        "weight_shape": torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if weight.zero_point is not None:
        tensors["weight_zero_point"] = pack_to_int32(weight.zero_point, weight.bits, packed_dim=0).contiguous()
    return tensors


def _pack_rows(weight: QuantizedTensor) -> torch.Tensor:
    """Codes packed along their rows. By rows: the library needs some 20 bytes a code while it packs."""
    rows, columns = weight.codes.shape
    step = max(1, _PACKED_AT_ONCE // columns)
    packed = torch.empty((rows, -(-columns * weight.bits // 32)), dtype=torch.int32)
    for start in range(0, rows, step):
        packed[start : start + step] = pack_to_int32(weight.codes[start : start + step], weight.bits)
    return packed


def unpack(tensors: dict[str, torch.Tensor], bits: int) -> QuantizedTensor:
    """The inverse of :func:`pack`.

    Args:
        tensors: ``weight_packed``, ``weight_scale``, ``weight_shape`` and, when asymmetric, ``weight_zero_point``.
        bits: width of a code.
    """
    shape = torch.Size(int(size) for size in tensors["weight_shape"])
    scale = tensors["weight_scale"]
    packed = tensors["weight_packed"]
    # By rows: the library's unpacking needs about 20 bytes a code, which for a whole layer would set the memory peak.
    # A small share of the layer at once, so that small models pay little and large ones need few rounds.
    rows = max(1, max(_PACKED_AT_ONCE, shape.numel() // 64) // shape[1])
    codes = torch.empty(shape, dtype=torch.int8)
    for start in range(0, shape[0], rows):
        part = packed[start : start + rows]
        codes[start : start + rows] = unpack_from_int32(part, bits, torch.Size((part.shape[0], shape[1])))
    zero_point = None
    if "weight_zero_point" in tensors:
        zero_shape = torch.Size((shape[0], scale.shape[1]))
        zero_point = unpack_from_int32(tensors["weight_zero_point"], bits, zero_shape, packed_dim=0).contiguous()
    return QuantizedTensor(codes=codes, scale=scale, zero_point=zero_point, bits=bits)


def quantization_config(packed: dict[str, PackedModule], dense_linears: list[str]) -> dict[str, Any]:
    """The ``quantization_config`` of ``config.json`` that transformers and vLLM read.

    The most frequent scheme targets the class ``Linear``; the others target their modules by name, which takes
    precedence; linears left dense are in ``ignore``.

    Args:
        packed: representation by module name, at least one.
        dense_linears: names of the linears that are not packed, ``lm_head`` among them.
    """
    counts = Counter(packed.values())
    schemes = sorted(counts, key=lambda scheme: (-counts[scheme], scheme.bits, scheme.group_size, scheme.symmetric))
    groups = {}
    for index, scheme in enumerate(schemes):
        named = [name for name, representation in packed.items() if representation == scheme]
        groups[f"group_{index}"] = {
            "targets": ["Linear"] if index == 0 else named,
            "weights": {
                "num_bits": scheme.bits,
                "type": "int",
                "symmetric": scheme.symmetric,
                "strategy": "channel" if scheme.group_size == -1 else "group",
                "group_size": None if scheme.group_size == -1 else scheme.group_size,
                "dynamic": False,
                "observer": "minmax",
            },
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(dense_linears),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
