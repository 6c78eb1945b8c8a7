"""How every kind of compressed layer is written and read back: one line a kind.

A layer class says its kind in the class attribute ``stored_kind`` and has

- ``representation``: the manifest's entry,
- ``stored_tensors()``: what is stored, by name below the module; without the bias, and without modules inside it, which
  are stored like any other,

and its file has a ``FORMAT`` for reading. Importing this imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["StoredFormat", "format_of_kind", "stored_kind"]

_FORMATS = {
    "adapted": "agentic_compression.checkpoints.adapted_linear:FORMAT",
    "packed": "agentic_compression.checkpoints.packed_linear:FORMAT",
    "bitmask": "agentic_compression.checkpoints.bitmask:FORMAT",
    "low_rank": "agentic_compression.checkpoints.low_rank_linear:FORMAT",
    "int8": "agentic_compression.checkpoints.int8_linear:FORMAT",
    "nf4": "agentic_compression.checkpoints.nf4_linear:FORMAT",
    "fp8": "agentic_compression.checkpoints.fp8_linear:FORMAT",
}


@dataclass(frozen=True)
class StoredFormat:
    """How a kind of layer is read back.

    Attributes:
        tensor_names: names below the module of the tensors that make a layer of this representation; empty for a layer
            that only holds other layers.
        restore: the layer from those tensors (on the CPU), the representation and the plain linear it takes the place
            of, whose parameters may be on the meta device; the bias is put in by the caller. For a layer that holds
            others it is called first, with no tensors, and its inner linears are filled afterwards.
        standard: name of the quantization format other runtimes know it by; None when only this package loads it.
            A checkpoint is standard when all its layers that are not dense have the same.
        config: ``quantization_config`` of ``config.json``: from the representations by module name and the names of
            the linears that stay dense.
    """

    tensor_names: Callable[[Any], tuple[str, ...]]
    restore: Callable[[dict[str, torch.Tensor], Any, nn.Linear], nn.Module]
    standard: str | None = None
    config: Callable[[dict[str, Any], list[str]], dict[str, Any]] | None = None


def format_of_kind(kind: str) -> StoredFormat:
    """The format of a kind in a manifest."""
    module, _, attribute = _FORMATS[kind].partition(":")
    found: StoredFormat = getattr(importlib.import_module(module), attribute)
    return found


def stored_kind(module: Any) -> str | None:
    """The kind a layer is stored as; None for modules that are stored as they are."""
    return getattr(type(module), "stored_kind", None)
