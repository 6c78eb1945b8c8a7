"""Running the blocks of a decoder one at a time, in float32, with some of their weights replaced.

Calibration windows are padded on the right to one length: in a causal model no token sees what comes after it, so the
padding changes nothing before it. All batches then have one shape and share the masks and rotary embeddings that the
model hands to its blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from agentic_compression.errors import CompressionError

__all__ = ["Arguments", "float32_copy", "padded_batches", "record_blocks", "run_block"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with besides its hidden states."""


def padded_batches(windows: Sequence[torch.Tensor], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows as rows of one length, and which positions are theirs.

    The number of rows becomes a multiple of ``size`` by rows that are all padding.

    Args:
        windows: int64 ``(1, tokens)`` each.
        size: windows a batch.

    Returns:
        ``ids`` int64 and ``mask`` bool, both ``(batches, size, tokens)``.
    """
    longest = max(window.shape[1] for window in windows)
    rows = -(-len(windows) // size) * size
    ids = torch.zeros((rows, longest), dtype=torch.int64)
    mask = torch.zeros((rows, longest), dtype=torch.bool)
    for row, window in enumerate(windows):
        ids[row, : window.shape[1]] = window[0]
        mask[row, : window.shape[1]] = True
    return ids.view(-1, size, longest), mask.view(-1, size, longest)


class _EnoughError(Exception):
    """The forward pass got as far as it is needed."""


@torch.no_grad()
def record_blocks(
    model: nn.Module, blocks: nn.ModuleList, ids: torch.Tensor
) -> tuple[list[torch.Tensor], list[Arguments]]:
    """What the first block gets from every batch, and what else every block is called with.

    Args:
        model: a causal language model.
        blocks: its decoder blocks.
        ids: ``(batches, size, tokens)``.

    Returns:
        float32 hidden states ``(size, tokens, hidden)`` by batch, and arguments by block.

    Raises:
        CompressionError: when the blocks do not run one after the other.
    """
    hidden: list[torch.Tensor] = []
    arguments: list[Arguments] = []

    def note(first: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept = dict(kwargs)
            x, rest = (args[0], args[1:]) if args else (kept.pop("hidden_states"), ())
            if first:
                hidden.append(x.to(torch.float32))
            if len(arguments) < len(blocks):
                arguments.append((_in_float32(rest), _in_float32(kept)))
            if len(arguments) == len(blocks):
                raise _EnoughError

        return hook

    handles = [
        block.register_forward_pre_hook(note(index == 0), with_kwargs=True) for index, block in enumerate(blocks)
    ]
    try:
        for batch in ids:
            try:
                model(input_ids=batch.to(next(model.parameters()).device), use_cache=False)
            except _EnoughError:
                continue
            raise CompressionError(
                f"{type(model).__name__} does not run its {len(blocks)} decoder blocks one after the other, which "
                "is needed here; use rtn or asvd:alpha=0"
            )
    finally:
        for handle in handles:
            handle.remove()
    return hidden, arguments


def float32_copy(block: nn.Module) -> nn.Module:
    """A copy of a block in float32 whose parameters take no gradients."""
    made = copy.deepcopy(block).to(torch.float32)
    for parameter in made.parameters():
        parameter.requires_grad_(False)
    return made


def run_block(
    block: nn.Module, replaced: Mapping[str, torch.Tensor], hidden: torch.Tensor, arguments: Arguments
) -> torch.Tensor:
    """Output ``(size, tokens, hidden)`` of a block with some of its parameters replaced, by name inside the block."""
    rest, kwargs = arguments
    result = torch.func.functional_call(block, dict(replaced), (hidden, *rest), kwargs)
    output: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return output


def _in_float32(value: Any) -> Any:
    """Floating point tensors as float32, in tuples, lists and dictionaries too."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.float32) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_in_float32(item) for item in value)
    if isinstance(value, dict):
        return {key: _in_float32(item) for key, item in value.items()}
    return value
