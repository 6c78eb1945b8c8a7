"""Which layers of a model the methods work on, and how group sizes fit their widths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError

if TYPE_CHECKING:
    import torch

__all__ = ["fitting_group_size", "group_notes", "require_linears", "target_linears", "uncovered_notes"]

_ROUTERS = ("gate", "router", "classifier", "score")
_UNCOVERED_FROM = 0.05


def target_linears(model: Any) -> list[tuple[str, torch.nn.Linear]]:
    """The linears that methods compress, by name, in the order of the model.

    The output embedding (``lm_head``) stays as it is, tied or not, and so do routers of mixtures of experts: they are
    small and decide everything. Factors of a low-rank pair are linears like any other.
    """
    from torch import nn

    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter else None
    return [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head and name.rpartition(".")[2] not in _ROUTERS
    ]


def require_linears(model: Any, what: str) -> list[tuple[str, torch.nn.Linear]]:
    """:func:`target_linears`, which must not be empty.

    Raises:
        CompressionError: naming the method ``what`` and the architecture.
    """
    if targets := target_linears(model):
        return targets
    raise CompressionError(
        f"{what} works on torch.nn.Linear layers, and {type(model).__name__} has none besides its output embedding "
        "(GPT-2, for one, keeps its weights in Conv1D); use a model of another architecture"
    )


def uncovered_notes(model: Any) -> tuple[str, ...]:
    """What to record when much of a model is not in linears: stacked experts of a mixture, which stay as they are."""
    stacked = [(name, parameter) for name, parameter in model.named_parameters() if parameter.dim() > 2]
    share = sum(parameter.numel() for _, parameter in stacked) / sum(p.numel() for p in model.parameters())
    if share < _UNCOVERED_FROM:
        return ()
    return (f"{share:.0%} of the weights are stacked tensors, not linears, and stay as they are: {stacked[0][0]}",)


def fitting_group_size(in_features: int, group_size: int) -> int:
    """The group size a layer gets: ``group_size`` when it divides the width, else the next larger divisor.

    The standard format has no shorter last group. The next larger divisor costs fewest bits and stays closest to what
    was asked: a width of 172 gets 43 for 32 and 86 for 64; at worst a whole row is one group.

    Args:
        in_features: width of the layer's input.
        group_size: as asked; -1 means one group a row.
    """
    if group_size == -1 or group_size >= in_features:
        return in_features
    return next(size for size in range(group_size, in_features + 1) if in_features % size == 0)


def group_notes(layers: Iterable[tuple[str, int]], group_size: int) -> tuple[str, ...]:
    """What to record when layers do not get the group size that was asked for: one line a width.

    Args:
        layers: name and input width of every quantized layer.
        group_size: as asked.
    """
    named: dict[tuple[int, int], list[str]] = {}
    for name, in_features in layers:
        used = fitting_group_size(in_features, group_size)
        if group_size not in (-1, used):
            named.setdefault((in_features, used), []).append(name)
    return tuple(
        f"group_size {group_size} does not divide {width}, used {used} in {len(names)} layers, the first is {names[0]}"
        for (width, used), names in named.items()
    )
