"""What of a compressed model trains: dense weights with their zeros, factors, norms, biases and packed layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.methods.distill_fake_quantized import FakeQuantizedLinear
from agentic_compression.methods.training import in_float32

__all__ = ["relative_step", "trainable", "trainable_student"]

_SMALLEST_STEP = 1e-2


@contextmanager
def trainable_student(model: Any, teacher: Any, embeddings: bool) -> Iterator[dict[str, tuple[torch.Tensor, float]]]:
    """The parameters to train, with the size of their steps; inside, the model computes in float32.

    Packed layers are replaced by ones that round latent weights to the same grid, and packed again when the context
    ends. Weights that are zero stay zero. Everything trains but embeddings and the output embedding.

    Args:
        model: the compressed model, changed in place.
        teacher: the uncompressed one; latent weights start from its weights where names and shapes agree.
        embeddings: whether embeddings and the output embedding train too.
    """
    originals = {name: module for name, module in teacher.named_modules() if isinstance(module, nn.Linear)}
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedLinear):
            original = originals.get(name)
            model.set_submodule(name, FakeQuantizedLinear(module, None if original is None else original.weight))
    handles: list[Any] = []
    try:
        with in_float32(model):
            chosen = trainable(model, embeddings)
            handles = [hook for parameter, _ in chosen.values() if (hook := _keep_zeros(model, parameter))]
            yield chosen
    finally:
        for handle in handles:
            handle.remove()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for name, module in list(model.named_modules()):
            if isinstance(module, FakeQuantizedLinear):
                model.set_submodule(name, module.packed())


def trainable(model: Any, embeddings: bool) -> dict[str, tuple[torch.Tensor, float]]:
    """Every parameter that trains, by name, with the size of its steps; the others stop asking for gradients."""
    frozen = set() if embeddings else _embedding_parameters(model)
    chosen: dict[str, tuple[torch.Tensor, float]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) not in frozen and parameter.is_floating_point())
        if parameter.requires_grad:
            chosen[name] = (parameter, _step_of(model, name, parameter))
    return chosen


def relative_step(parameter: torch.Tensor) -> float:
    """Root mean square of the values that are not zero, at least 0.01: the size of a step relative to the rate."""
    values = parameter.detach()[parameter.detach() != 0].float()
    return max(_SMALLEST_STEP, float(values.square().mean().sqrt())) if values.numel() else _SMALLEST_STEP


def _step_of(model: Any, name: str, parameter: torch.Tensor) -> float:
    """Relative to the values, but on a grid never more than relative to the distance of its levels.

    So latent weights, zero points and (through the extreme codes) scales all move by a similar share of a level a
    step, and a fine grid, which has lost little, is not shaken by steps that suit a coarse one.
    """
    owner, _, leaf = name.rpartition(".")
    layer = model.get_submodule(owner)
    if not isinstance(layer, FakeQuantizedLinear) or leaf == "bias":
        return relative_step(parameter)
    if leaf == "latent":
        return min(relative_step(parameter), float(layer.log_scale.detach().exp().mean()))
    return 4 / 2**layer.bits if leaf == "log_scale" else 1.0


def _embedding_parameters(model: Any) -> set[int]:
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings()
    return {id(parameter) for module in (*modules, head) if module is not None for parameter in module.parameters()}


def _keep_zeros(model: Any, parameter: torch.Tensor) -> Any:
    """Cut the gradient of weights that are zero, which then never change; None for a weight without zeros.

    Adam moves a value whose gradients were all zero by exactly zero.
    """
    if parameter.dim() < 2 or any(parameter is part for part in _fake_parameters(model)):
        return None
    kept = parameter.detach() != 0
    return None if bool(kept.all()) else parameter.register_hook(lambda gradient: gradient * kept)


def _fake_parameters(model: Any) -> Iterator[torch.Tensor]:
    for module in model.modules():
        if isinstance(module, FakeQuantizedLinear):
            yield from module.parameters()
