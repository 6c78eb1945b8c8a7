"""Unstructured zeros stored compactly: one bit an element and the values that are not zero.

This makes the file smaller, not the running model: the weight is dense again once loaded, so its memory and latency
are those of a dense layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from agentic_compression.checkpoints.stored import StoredFormat

__all__ = [
    "BITMASK_NAMES",
    "FORMAT",
    "MINIMUM_SPARSITY",
    "compress_bitmask",
    "decompress_bitmask",
    "pays_off",
    "sparsity_of",
]

MINIMUM_SPARSITY = 0.3
BITMASK_NAMES = ("weight_bitmask", "weight_values", "weight_shape")


def sparsity_of(weight: torch.Tensor) -> float:
    """The share of elements that are zero."""
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()


def pays_off(weight: torch.Tensor) -> bool:
    """Whether at least 30 % of the elements are zero and the bitmask form is smaller than the dense one."""
    zeros = weight.numel() - int(torch.count_nonzero(weight))
    saved = zeros * weight.element_size() - (weight.numel() + 7) // 8
    return zeros >= MINIMUM_SPARSITY * weight.numel() and saved > 0


def compress_bitmask(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Split a weight into its mask and its values.

    Args:
        weight: any shape.

    Returns:
        ``weight_bitmask`` uint8 ``(ceil(elements / 8),)``, most significant bit first, in row-major order;
        ``weight_values`` with the non-zero values in that order; ``weight_shape`` int64.
    """
    flat = weight.reshape(-1)
    mask = flat != 0
    bits = torch.from_numpy(np.packbits(mask.cpu().numpy()))
    return {
        "weight_bitmask": bits,
        "weight_values": flat[mask].contiguous(),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }


def decompress_bitmask(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The inverse of :func:`compress_bitmask`: the dense weight in the stored dtype."""
    shape = [int(size) for size in tensors["weight_shape"]]
    values = tensors["weight_values"]
    weight = torch.zeros(int(np.prod(shape)), dtype=values.dtype)
    bits = np.unpackbits(tensors["weight_bitmask"].numpy(), count=weight.numel())
    weight[torch.from_numpy(bits.view(bool))] = values
    return weight.view(shape)


def _restore(tensors: dict[str, torch.Tensor], representation: Any, linear: nn.Linear) -> nn.Linear:
    weight = decompress_bitmask(tensors).to(linear.weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


FORMAT = StoredFormat(tensor_names=lambda _: BITMASK_NAMES, restore=_restore)
