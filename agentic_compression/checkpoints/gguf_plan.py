"""How a model is to be written as a GGUF file: llama.cpp's types by tensor, and what weighs their rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["GgufPlan"]


@dataclass(frozen=True)
class GgufPlan:
    """What a GGUF file is to hold.

    Attributes:
        file_type: the name users know, ``F16``, ``Q8_0``, ``Q4_K_M`` …; goes into the file's metadata.
        types: ggml type (``Q4_K``, ``F16`` …) by the model's own module name; a linear or embedding not listed is F16.
        importance: mean squared input by module name, float32 ``(in_features,)``: weighs the rounding error.
        layers: of ours, by module name, whose own codes are written as blocks of the type in ``types``; in the model a
            linear of the same shape stands in for each.
        probes: texts on which llama.cpp's tokenizer must agree with the model's, besides the built-in ones.
    """

    file_type: str
    types: Mapping[str, str] = field(default_factory=dict)
    importance: Mapping[str, torch.Tensor] = field(default_factory=dict)
    layers: Mapping[str, Any] = field(default_factory=dict)
    probes: tuple[str, ...] = ()
