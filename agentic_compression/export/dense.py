"""A loaded checkpoint as other tools want it: all layers dense, or in one compressed-tensors format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from agentic_compression.checkpoints.adapted_linear import AdaptedLinear
from agentic_compression.checkpoints.int8_linear import Int8Linear
from agentic_compression.checkpoints.low_rank_linear import LowRankLinear, folded
from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.checkpoints.quantized import QuantizedTensor
from agentic_compression.checkpoints.stored import format_of_kind, stored_kind
from agentic_compression.checkpoints.tensor_files import write_tensors

__all__ = ["float_bytes", "make_dense", "make_packed", "write_compressed_tensors"]


def make_dense(model: nn.Module) -> int:
    """Put a dense linear in the place of every layer of ours, outermost first; returns how many.

    Weights are computed in float32 and rounded once to the model's dtype.
    """
    count = 0
    dtype: Any = getattr(model, "dtype", torch.float32)
    names = [name for name, module in model.named_modules() if stored_kind(module) is not None]
    for name in sorted(names, key=lambda item: item.count(".")):
        parent = name.rpartition(".")[0]
        owner: Any = model.get_submodule(parent)
        layer: Any = getattr(owner, name.rpartition(".")[2], None)
        if layer is None or stored_kind(layer) is None:
            continue  # it went with the layer that held it
        model.set_submodule(name, _dense(layer, dtype))
        count += 1
    return count


def _dense(layer: Any, dtype: torch.dtype) -> nn.Linear:
    if isinstance(layer, LowRankLinear):
        linear = folded(layer)  # float32 where both factors are quantized
        return _linear(linear.weight.detach().to(dtype), linear.bias)
    if isinstance(layer, AdaptedLinear):
        base: Any = layer.base
        weight = base.weight if isinstance(base, nn.Linear) else base.dequantize(torch.float32)
        weight = weight.detach().float() + layer.up.weight.detach().float() @ layer.down.weight.detach().float()
        return _linear(weight.to(dtype), base.bias)
    return _linear(layer.dequantize(torch.float32).to(dtype), layer.bias)


def _linear(weight: torch.Tensor, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = bias
    return linear


def float_bytes(model: nn.Module, item_bytes: int | None = None) -> int:
    """Bytes of a model whose layers are all dense, shared tensors once; ``item_bytes`` instead of the stored width."""
    return sum(tensor.numel() * (item_bytes or tensor.element_size()) for tensor in model.parameters())


def make_packed(model: nn.Module) -> None:
    """Turn int8 layers into packed ones of 8 bits, a scale a row: the same weights."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8Linear):
            weight = QuantizedTensor(codes=module.codes, scale=module.scale[:, None], zero_point=None, bits=8)
            model.set_submodule(name, PackedLinear(weight, module.bias))


def write_compressed_tensors(model: Any, folder: Path) -> dict[str, Any]:
    """Write the tensors of a model whose layers are dense, and packed or fp8.

    Returns:
        The ``quantization_config`` that goes with them.
    """
    layers: dict[str, Any] = {name: item for name, item in model.named_modules() if stored_kind(item) is not None}
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            stored[name] = tensor.detach().contiguous()
    groups = [
        {f"{name}.{key}": tensor.contiguous() for key, tensor in layer.stored_tensors().items()}
        for name, layer in layers.items()
    ]
    write_tensors([stored, *groups], folder)
    kind = next(iter(layers.values())).stored_kind
    make = format_of_kind(kind).config
    assert make is not None, kind
    dense = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return make({name: layer.representation for name, layer in layers.items()}, dense)
