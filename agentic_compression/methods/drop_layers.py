"""Removing whole decoder blocks.

Idea: neighbouring blocks of a trained decoder change the residual stream little, and some can be left out. With
``influence`` a block is judged by how much it turns its input, ``1 - cos(input, output)`` averaged over the tokens of
the calibration text, all from one pass, and the least influential ones go (Men et al. 2024, ShortGPT,
arXiv:2403.03853). With ``loss`` the block whose absence raises the loss on that text least goes, then the next one is
looked for in the model without it: a pass for each block left, much dearer, and it sees that two blocks can each be
spared but not both.

Changes: fewer blocks, so less of everything: size, latency, memory and the key-value cache. Weights of the blocks that
stay are as they were. Settings that the config lists by layer, such as ``layer_types``, lose the entries of removed
blocks; a runtime that derives a layer's kind from its number (llama.cpp for Gemma 2 and 3) would get them wrong.
Not covered: repair. Healing or more calibration-based stages may follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import (
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Range,
    Workload,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["METHOD", "DropLayersConfig", "apply", "influences"]

_LOSS_TOKENS = 16384
_FLOPS_PER_SECOND = 2e10


class DropLayersConfig(MethodConfig):
    """Parameters of removing blocks."""

    share: Annotated[float, Range(0.1, 0.5, step=0.1)] = Field(
        default=0.2, description="share of the decoder's blocks to remove; at least one goes and one stays"
    )
    criterion: Annotated[str, Choice("loss", "influence")] = Field(
        default="loss",
        description="remove what raises the loss least, one by one (slow), or what turns the residual stream least",
    )


def apply(model: Any, config: DropLayersConfig, context: CompressionContext) -> Compressed:
    """Remove ``round(share * blocks)`` blocks.

    Args:
        model: a causal language model with a list of at least two decoder blocks.
        config: share and criterion.
        context: calibration windows, device, progress.

    Returns:
        A new model that has taken the tensors of the given one.

    Raises:
        CompressionError: when there is no calibration data, one block only, or an architecture whose blocks cannot go.
    """
    from agentic_compression.methods.layerwise import blocks_of
    from agentic_compression.methods.rebuilding import (
        ConfigRefusedError,
        check_same_output,
        empty_model,
        move_tensors,
        probe,
    )

    if not context.calibration:
        raise CompressionError("drop_layers needs calibration text, got none; give calibration_path, or use magnitude")
    prefix, blocks = blocks_of(model)
    if len(blocks) < 2:
        raise CompressionError(
            f"drop_layers needs at least two decoder blocks, {type(model).__name__} has {len(blocks)}; "
            "use drop_channels"
        )
    count = min(max(round(config.share * len(blocks)), 1), len(blocks) - 1)
    choose = _by_influence if config.criterion == "influence" else _by_loss
    removed, scores = choose(model, blocks, count, context)
    kept = [index for index in range(len(blocks)) if index not in removed]
    with _without(blocks, removed):
        expected = probe(model, context)
    try:
        empty = empty_model(model, _settings(model, kept))
    except ConfigRefusedError as error:
        raise CompressionError(f"{type(model).__name__} cannot have {len(kept)} blocks: {error}") from error
    renamed = {f"{prefix}.{index}.": "" for index in removed}
    renamed.update({f"{prefix}.{old}.": f"{prefix}.{new}." for new, old in enumerate(kept)})
    smaller = move_tensors(model, empty, renamed)
    check_same_output(smaller, expected, context)
    what = ", ".join(f"{index} ({score:.4g})" for index, score in zip(removed, scores, strict=True))
    return Compressed(
        model=smaller,
        notes=(f"removed blocks ({config.criterion}): {what}; {len(kept)} of {len(blocks)} stay",),
    )


def influences(model: Any, blocks: Sequence[nn.Module], context: CompressionContext) -> list[float]:
    """Block Influence of every block: ``1 - cos`` between its input and output, mean over tokens (ShortGPT, eq. 1)."""
    import torch

    sums = [0.0] * len(blocks)
    tokens = 0

    def hook(index: int) -> Any:
        def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = (args[0] if args else kwargs["hidden_states"]).to(torch.float32)
            after = (output[0] if isinstance(output, tuple) else output).to(torch.float32)
            sums[index] += float((1 - torch.cosine_similarity(before, after, dim=-1)).sum())

        return take

    handles = [block.register_forward_hook(hook(index), with_kwargs=True) for index, block in enumerate(blocks)]
    windows = context.calibration or ()
    try:
        with torch.no_grad():
            for done, window in enumerate(windows):
                context.progress("drop_layers", done, len(windows))
                model(input_ids=window.to(context.device), use_cache=False)
                tokens += window.numel()
    finally:
        for handle in handles:
            handle.remove()
    context.progress("drop_layers", len(windows), len(windows))
    return [total / tokens for total in sums]


def _by_influence(
    model: Any, blocks: nn.ModuleList, count: int, context: CompressionContext
) -> tuple[list[int], list[float]]:
    found = influences(model, list(blocks), context)
    _check_finite(found)
    removed = sorted(sorted(range(len(found)), key=lambda index: (found[index], index))[:count])
    return removed, [found[index] for index in removed]


def _by_loss(
    model: Any, blocks: nn.ModuleList, count: int, context: CompressionContext
) -> tuple[list[int], list[float]]:
    """One block after the other, each with the loss of the model without it and those before it."""
    windows = _windows(context)
    total = sum(len(blocks) - step for step in range(count))
    done = 0
    removed: list[int] = []
    after: dict[int, float] = {}
    for _ in range(count):
        losses = {}
        for index in range(len(blocks)):
            if index in removed:
                continue
            context.progress("drop_layers", done, total)
            with _without(blocks, [*removed, index]):
                losses[index] = _loss(model, windows, context.device)
            done += 1
        _check_finite(losses.values())
        best = min(losses, key=lambda index: (losses[index], index))
        removed.append(best)
        after[best] = losses[best]
    context.progress("drop_layers", total, total)
    removed.sort()
    return removed, [after[index] for index in removed]


def _windows(context: CompressionContext) -> list[torch.Tensor]:
    """The first windows with at most 16,384 tokens together: losses are compared on the same text, so few do."""
    chosen: list[torch.Tensor] = []
    tokens = 0
    for window in context.calibration or ():
        if chosen and tokens + window.numel() > _LOSS_TOKENS:
            break
        chosen.append(window)
        tokens += window.numel()
    return chosen


def _loss(model: Any, windows: Sequence[torch.Tensor], device: str) -> float:
    """Mean negative log-likelihood of a token given those before it."""
    import torch

    total, tokens = 0.0, 0
    with torch.no_grad():
        for window in windows:
            ids = window.to(device)
            scores = model(input_ids=ids, use_cache=False).logits[0, :-1].to(torch.float32)
            total += float(torch.nn.functional.cross_entropy(scores, ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
    return total / max(tokens, 1)


def _check_finite(values: Any) -> None:
    if not all(math.isfinite(value) for value in values):
        raise CompressionError("drop_layers found NaN or infinite activations; check the model, or load it in float32")


@contextmanager
def _without(blocks: nn.ModuleList, removed: Sequence[int]) -> Iterator[None]:
    """Let these blocks pass their input on."""

    def passing(*args: Any, **kwargs: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    for index in removed:
        # The instance's attribute hides the method. Blocks return the residual stream alone, or a tuple in old code;
        # a decoder that takes the first of a tuple fails in the check of the smaller model and is refused.
        blocks[index].forward = passing
    try:
        yield
    finally:
        for index in removed:
            del blocks[index].forward


def _settings(model: Any, kept: Sequence[int]) -> dict[str, Any]:
    """Config settings of the model with these blocks only: their number, and what is listed by layer."""
    settings = model.config.get_text_config()
    blocks = settings.num_hidden_layers
    listed = {
        name: [value[index] for index in kept]
        for name, value in settings.to_dict().items()
        if "layer" in name and isinstance(value, list | tuple) and len(value) == blocks
    }
    return {"num_hidden_layers": len(kept), **listed}


def _needs(workload: Workload, config: DropLayersConfig) -> Needs:
    """The model, and the logits of one window; forward passes over the calibration text."""
    blocks = workload.blocks
    tokens = min(workload.calibration_tokens, _LOSS_TOKENS)
    passes = 1.0
    if config.criterion == "loss":
        count = min(max(round(config.share * blocks), 1), max(blocks - 1, 1))
        passes = sum((blocks - step) * (blocks - step - 1) / max(blocks, 1) for step in range(count))
    else:
        tokens = workload.calibration_tokens
    flops = 2 * workload.parameters * tokens * passes
    logits = 3 * 4 * min(tokens, 2048) * workload.vocabulary
    return Needs(
        peak_bytes=workload.weight_bytes + logits + 64 * min(tokens, 2048) * workload.hidden,
        seconds=1 + flops / (_FLOPS_PER_SECOND * max(workload.threads, 1)),
    )


METHOD = Method(
    name="drop_layers",
    category="pruning",
    config=DropLayersConfig,
    apply=apply,
    summary="remove the decoder blocks that the model misses least on calibration text; smaller and faster anywhere",
    paper="Men et al. 2024, ShortGPT, arXiv:2403.03853",
    needs_calibration=True,
    may_follow=("pruning",),
    may_not_follow=("drop_layers", "magnitude", "wanda", "sparsegpt"),
    needs=_needs,
)
