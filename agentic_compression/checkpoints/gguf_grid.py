"""A checkpoint's own integer codes in llama.cpp's blocks of 32: its grid goes into a GGUF file, not an approximation.

ggml's quantizers would search scales of their own and round the weights a second time. Here the codes are written as
they are; of a group's numbers only the scale, and a block's least value where it has one, are rounded, to float16.

A block is, in this order, a float16 scale ``d``, for ``Q4_1`` and ``Q5_1`` a float16 least value ``m``, for ``Q5_0``
and ``Q5_1`` four bytes with the fifth bits of its 32 numbers, the first number's lowest, and 16 bytes with the first 16
numbers in the low halves and the others in the high ones; ``Q8_0`` has 32 signed bytes instead. A weight is
``d * (q - 8)`` in ``Q4_0``, ``d * (q - 16)`` in ``Q5_0``, ``d * q`` in ``Q8_0`` and ``d * q + m`` in the two others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agentic_compression.checkpoints.ggml import row_bytes
from agentic_compression.checkpoints.int8_linear import Int8Linear
from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.checkpoints.quantized import QuantizedTensor
from agentic_compression.checkpoints.stored import stored_kind
from agentic_compression.errors import CompressionError

__all__ = ["GRID_TYPES", "OwnGrid", "grid_rows", "grid_type", "own_codes", "take_own_grid"]

GRID_TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7}
"""Types written here, the smallest first, and the number in ``enum llama_ftype`` of a file that holds mostly these."""

_BLOCK = 32
_MIDDLES = {"Q4_0": 8, "Q4_1": 8, "Q5_0": 16, "Q5_1": 16, "Q8_0": 128}  # half as many as the type has numbers
_WITH_LEAST = ("Q4_1", "Q5_1")
_WEIGHTS_AT_ONCE = 1 << 20
_ROUNDING = 2.0**-11  # of float16, relative


@dataclass(frozen=True)
class OwnGrid:
    """Which layers of a model keep their codes.

    Attributes:
        layers: they themselves, by name.
        types: the block type of each.
        refused: why the others that hold integers cannot, by name.
    """

    layers: dict[str, Any] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def take_own_grid(model: Any) -> OwnGrid:
    """Take the layers out of a model whose codes fit blocks; linears without numbers stand in for them.

    Args:
        model: a loaded checkpoint; layers that are part of another one (factors, adapted ones) are left alone.
    """
    found = OwnGrid()
    stored = {name: module for name, module in model.named_modules() if stored_kind(module) is not None}
    for name, layer in stored.items():
        weight = None if _inside(name, stored) else own_codes(layer)
        if weight is None:
            continue
        try:
            found.types[name] = grid_type(weight)
        except CompressionError as error:
            found.refused[name] = str(error)
            continue
        found.layers[name] = layer
        like: dict[str, Any] = {"device": "meta", "dtype": model.dtype}
        stand_in = nn.Linear(layer.in_features, layer.out_features, bias=False, **like)
        stand_in.bias = layer.bias
        model.set_submodule(name, stand_in)
    return found


def _inside(name: str, stored: dict[str, Any]) -> bool:
    return any(name.startswith(f"{other}.") for other in stored)


def own_codes(layer: Any) -> QuantizedTensor | None:
    """The integers a layer's weight is made of; None where it has none."""
    if isinstance(layer, PackedLinear):
        return layer.quantized()
    if isinstance(layer, Int8Linear):
        return QuantizedTensor(codes=layer.codes, scale=layer.scale[:, None], zero_point=None, bits=8)
    return None


def grid_type(weight: QuantizedTensor) -> str:
    """The smallest block type that holds a weight's codes.

    What decides is how far the codes lie from their zero points: those of few bits fit ``Q4_0`` even where zero points
    move, and need no least value then.

    Raises:
        CompressionError: when there is none; the reason alone, the same for layers alike.
    """
    if weight.group_size % _BLOCK:
        raise CompressionError(f"groups of {weight.group_size} weights are no whole blocks of {_BLOCK}")
    rows, step = weight.codes.shape[0], _rows_at_once(weight)
    least, largest = 0, 0
    used = torch.empty(weight.scale.shape, dtype=torch.bool)
    for start in range(0, rows, step):
        part = torch.arange(start, min(start + step, rows))
        distance = _codes(weight, part) - _zero_points(weight, part)
        least, largest = min(least, int(distance.amin())), max(largest, int(distance.amax()))
        used[part] = (distance != 0).any(dim=-1)
    for name in GRID_TYPES:
        middle = _MIDDLES[name]
        fits = 2**weight.bits <= 2 * middle if name in _WITH_LEAST else -middle <= least and largest < middle
        if fits:
            _check_scales(weight, used, name)
            return name
    raise CompressionError(f"codes of {weight.bits} bits lie further than a signed byte from their zero points")


def grid_rows(weight: QuantizedTensor, type_name: str, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Blocks of a weight, a part of its rows at a time.

    Args:
        weight: codes, scales and zero points.
        type_name: what :func:`grid_type` gives.
        rows: which row of the weight comes where, ``(out_features,)``.

    Returns:
        ``(out_features, bytes of a row)``.

    Raises:
        CompressionError: when the type does not hold the weight.
    """
    result = np.empty((len(rows), row_bytes(type_name, weight.codes.shape[1])), dtype=np.uint8)
    step = _rows_at_once(weight)
    for start in range(0, len(rows), step):
        result[start : start + step] = _blocks(weight, type_name, torch.from_numpy(rows[start : start + step]))
    return result


def _rows_at_once(weight: QuantizedTensor) -> int:
    return max(1, _WEIGHTS_AT_ONCE // weight.codes.shape[1])


def _codes(weight: QuantizedTensor, rows: torch.Tensor) -> torch.Tensor:
    """Int16 ``(rows, groups, group_size)``."""
    return weight.codes[rows].to(torch.int16).view(len(rows), -1, weight.group_size)


def _zero_points(weight: QuantizedTensor, rows: torch.Tensor) -> torch.Tensor:
    """Int16 ``(rows, groups, 1)``."""
    points = torch.zeros_like(weight.scale[rows]) if weight.zero_point is None else weight.zero_point[rows]
    return points.to(torch.int16)[..., None]


def _check_scales(weight: QuantizedTensor, used: torch.Tensor, type_name: str) -> None:
    """Refuse scales that float16 does not hold.

    Allowed is its usual rounding, of the scale itself or, where that is smaller than most of the layer's, of their
    median: a row next to zero may lose as much as any other. Groups of zeros do not count.
    """
    scale = weight.scale.to(torch.float32)[used]
    if not scale.numel():
        return
    held = scale.to(torch.float16).to(torch.float32)
    usual = torch.maximum(scale.abs(), scale.abs().nanmedian())
    wrong = ~((held - scale).abs() <= _ROUNDING * usual)
    if type_name in _WITH_LEAST:
        points = _zero_points(weight, torch.arange(len(used)))[..., 0][used]
        wrong |= ~torch.isfinite((held * (_MIDDLES[type_name] + points)).to(torch.float16))
    if bool(wrong.any()):
        raise CompressionError("float16 does not hold their scales")


def _blocks(weight: QuantizedTensor, type_name: str, rows: torch.Tensor) -> NDArray[np.uint8]:
    """Blocks of some rows, side by side."""
    middle = _MIDDLES[type_name]
    codes, points = _codes(weight, rows), _zero_points(weight, rows)
    distance = codes - points
    scale = weight.scale[rows].to(torch.float32)
    scale[(distance == 0).all(dim=-1)] = 0  # a group of zeros may have any scale
    scale = scale.to(torch.float16)
    parts = [_by_block(scale, weight.group_size)]
    if type_name in _WITH_LEAST:
        least = -(middle + points[..., 0]) * scale.to(torch.float32)
        parts.append(_by_block(least.to(torch.float16), weight.group_size))
        distance = codes
    numbers = distance.view(len(rows), -1, _BLOCK).numpy() + np.int16(middle)
    finite = all(np.isfinite(part.view("<f2")).all() for part in parts)
    if not finite or numbers.min() < 0 or numbers.max() >= 2 * middle:
        raise CompressionError(
            f"{type_name} holds {2 * middle} numbers and float16 scales, got {numbers.min()} to {numbers.max()} and "
            f"scales up to {float(weight.scale[rows].abs().max()):.3g}; choose the type with grid_type"
        )
    if type_name == "Q8_0":
        parts.append((numbers - middle).astype(np.int8).view(np.uint8))
        return _side_by_side(parts)
    narrow = numbers.astype(np.uint8)
    if 2 * middle > 16:
        parts.append(np.packbits(narrow >> 4, axis=-1, bitorder="little"))
    parts.append((narrow[..., : _BLOCK // 2] & 15) | (narrow[..., _BLOCK // 2 :] << 4))
    return _side_by_side(parts)


def _by_block(values: torch.Tensor, group_size: int) -> NDArray[np.uint8]:
    """A float16 number a group ``(rows, groups)`` as its bytes a block ``(rows, blocks, 2)``."""
    repeated = values.repeat_interleave(group_size // _BLOCK, dim=1).contiguous()
    found: NDArray[np.uint8] = repeated.numpy().astype("<f2")[..., None].view(np.uint8)
    return found


def _side_by_side(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Parts of the blocks ``(rows, blocks, bytes)`` joined to rows ``(rows, bytes of a row)``."""
    joined: NDArray[np.uint8] = np.concatenate(parts, axis=-1)
    return joined.reshape(len(joined), -1)
