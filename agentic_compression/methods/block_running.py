"""Running the blocks of a decoder one at a time, in float32, with some of their weights replaced.

Calibration windows are padded on the right to one length: in a causal model no token sees what comes after it, so the
padding changes nothing before it. All batches then have one shape and share the masks and rotary embeddings that the
model hands to its blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, tensors in tuples, lists and dictionaries by value."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
        )
    return True


@torch.no_grad()
def record_blocks(
    model: nn.Module, blocks: nn.ModuleList, ids: torch.Tensor
) -> tuple[list[torch.Tensor], list[Arguments]]:
    """What the first block gets from every batch, and what else every block is called with.

    That must be the same for every batch and every order of its rows, as masks and rotary embeddings are, since callers
    put rows together anew. The first block's arguments are compared for all batches, every block's for the first batch
    with its rows in the opposite order.

    Args:
        model: a causal language model.
        blocks: its decoder blocks.
        ids: ``(batches, size, tokens)``.

    Returns:
        float32 hidden states ``(size, tokens, hidden)`` by batch, and arguments by block.

    Raises:
        CompressionError: when the blocks do not run one after the other, or get something besides their hidden states
            that depends on the tokens.
    """
    hidden, arguments = _calls(model, blocks, ids[0], len(blocks))
    turned = [ids[0].flip(0)] if ids.shape[1] > 1 else []
    for index, batch in enumerate([*ids[1:], *turned]):
        is_turned = index == len(ids) - 1
        x, others = _calls(model, blocks, batch, len(blocks) if is_turned else 1)
        if not all(map(_same, others, arguments)) or x[0].shape != hidden[0].shape or x[0].dim() != 3:
            raise CompressionError(
                f"{type(model).__name__} ({model.config.model_type}) hands its decoder blocks more that depends on the "
                "tokens than hidden states (batch, tokens, hidden), so they cannot be tuned one by one; "
                "use gptq, awq or rtn"
            )
        if not is_turned:
            hidden += x
    return hidden, arguments


def _calls(
    model: nn.Module, blocks: nn.ModuleList, ids: torch.Tensor, count: int
) -> tuple[list[torch.Tensor], list[Arguments]]:
    """Hidden states the first block is called with, as a list of one, and the other arguments of the first ``count``.

    Args:
        model: a causal language model.
        blocks: its decoder blocks.
        ids: ``(size, tokens)``.
        count: of the blocks to run up to.
    """
    hidden: list[torch.Tensor] = []
    arguments: list[Arguments] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept = dict(kwargs)
        x, rest = (args[0], args[1:]) if args else (kept.pop("hidden_states"), ())
        if not hidden:
            hidden.append(x.to(torch.float32))
        arguments.append((_in_float32(rest), _in_float32(kept)))
        if len(arguments) == count:
            raise _EnoughError

    handles = [block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks]
    try:
        model(input_ids=ids.to(next(model.parameters()).device), use_cache=False)
    except _EnoughError:
        return hidden, arguments
    finally:
        for handle in handles:
            handle.remove()
    raise CompressionError(
        f"{type(model).__name__} does not run its {len(blocks)} decoder blocks one after the other, which "
        "is needed here; use rtn or asvd:alpha=0"
    )


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
