"""Removing channels of the MLPs: rows of gate and up, columns of down.

Idea: a channel of an MLP can go when what it adds to the output is small, or when other channels can add it in its
stead. Both are in the Gram matrix of the down projection's inputs on calibration text: channels go one after the other,
each time the one whose removal costs the output least once the others have made up for it, and the down projection is
fitted again by least squares to the output it had (Optimal Brain Surgeon for structures: Kurtic et al. 2023, ZipLM,
arXiv:2302.04089). From some hundred channels to remove on, several go at a time.

Changes: every block's MLP becomes narrower by the same number of channels, so the config stays plain and any runtime
loads the result. The width that stays is rounded to a multiple of 256 in models that have at least ten times that,
because llama.cpp's K-quants divide rows so, else to 32, 16, 8, 4 or 2 by the same rule. Not covered: attention, and
mixtures of experts, whose channels are not all seen by calibration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import (
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

    from agentic_compression.methods.structure import Mlp

__all__ = ["METHOD", "DropChannelsConfig", "apply", "choose_channels", "cut_channels", "kept_width"]

_MULTIPLES = (256, 32, 16, 8, 4, 2)
_ROUNDS = 64
_WIDTH_SETTINGS = ("intermediate_size", "ffn_dim")
_FLOPS_PER_SECOND = 2e10
_BATCH_TOKENS = 4096
_BATCH_BYTES = 64 << 20  # inputs turned into float32, and buffers of the matrix products


class DropChannelsConfig(MethodConfig):
    """Parameters of removing MLP channels."""

    share: Annotated[float, Range(0.1, 0.7, step=0.1)] = Field(
        default=0.3, description="share of the channels of every MLP to remove, rounded to a width that runtimes like"
    )


def apply(model: Any, config: DropChannelsConfig, context: CompressionContext) -> Compressed:
    """Remove the same number of channels from every MLP and fit the down projections again.

    Args:
        model: a causal language model with dense MLPs.
        config: the share.
        context: calibration windows, device, progress.

    Returns:
        A new model that has taken the tensors of the given one.

    Raises:
        CompressionError: when there is no calibration data or the MLPs are not of a known kind.
    """
    import torch

    from agentic_compression.methods.column_removal import damped, repaired
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.rebuilding import check_same_output, move_tensors, probe
    from agentic_compression.methods.structure import mlps_of

    mlps = mlps_of(model)
    width = kept_width(mlps[0].width, config.share)
    empty = _empty(model, mlps[0].width, width)
    outputs = {mlp.output for mlp in mlps}
    kept: dict[str, torch.Tensor] = {}
    for layers in walk_blocks(model, context, "drop_channels"):
        for name, linear, gram in layers:
            if name in outputs:
                matrix = damped(gram.matrix, name)
                channels = choose_channels(linear.weight, matrix, width)
                # Zeros first, the cut at the end: the block goes on running as it is, with the same result.
                weight = torch.zeros_like(linear.weight)
                weight[:, channels] = repaired(linear.weight.detach(), matrix, channels).to(weight.dtype)
                linear.weight.data.copy_(weight)
                kept[name] = channels
    expected = probe(model, context)
    for mlp in mlps:
        cut_channels(model, mlp, kept[mlp.output])
    smaller = move_tensors(model, empty)
    check_same_output(smaller, expected, context)
    removed = mlps[0].width - width
    note = f"kept {width} of {mlps[0].width} MLP channels in each block: {removed / mlps[0].width:.1%} removed"
    return Compressed(model=smaller, notes=(f"{note}, asked {config.share:.0%}",))


def kept_width(width: int, share: float) -> int:
    """Channels that stay: near ``(1 - share) * width``, a multiple of 256 … 2 that is at most a tenth of the width.

    Raises:
        CompressionError: when there is one channel only.
    """
    if width < 2:
        raise CompressionError(f"drop_channels needs MLPs of at least two channels, got {width}; use drop_layers")
    multiple = next((size for size in _MULTIPLES if 10 * size <= width), 1)
    most = (width - 1) // multiple * multiple
    return max(multiple, min(round((1 - share) * width / multiple) * multiple, most))


def choose_channels(weight: torch.Tensor, gram: torch.Tensor, width: int) -> torch.Tensor:
    """The channels to keep, ascending.

    Args:
        weight: of the down projection, ``(hidden, channels)``.
        gram: of its inputs, damped, float64, ``(channels, channels)``.
        width: channels to keep.
    """
    import torch

    from agentic_compression.methods.column_removal import ColumnRemoval

    removal = ColumnRemoval(weight.detach(), gram)
    total = gram.shape[0] - width
    step = max(1, total // _ROUNDS)
    while (owed := removal.left.shape[0] - width) > 0:
        order = torch.argsort(removal.column_costs(), stable=True)
        removal.remove(removal.left[order[: min(step, owed)]].sort().values)
    return removal.left


def cut_channels(model: Any, mlp: Mlp, channels: torch.Tensor) -> None:
    """Cut a block's projections to these channels; nothing is repaired."""
    from agentic_compression.methods.structure import keep_columns, keep_rows

    keep_columns(model.get_submodule(mlp.output), channels)
    for name in mlp.inputs:
        keep_rows(model.get_submodule(name), channels)


def _empty(model: Any, width: int, kept: int) -> Any:
    """The model with narrower MLPs, without storage."""
    from agentic_compression.methods.rebuilding import ConfigRefusedError, empty_model
    from agentic_compression.methods.structure import mlps_of

    settings = model.config.get_text_config()
    name = next((name for name in _WIDTH_SETTINGS if getattr(settings, name, None) == width), None)
    if name is None:
        raise CompressionError(
            f"{type(model).__name__} must give the MLP width {width} in its config as one of "
            f"{', '.join(_WIDTH_SETTINGS)}, got another value; use drop_heads, drop_layers or an unstructured method"
        )
    try:
        empty = empty_model(model, {name: kept})
    except ConfigRefusedError as error:
        raise CompressionError(f"{type(model).__name__} cannot have {kept} MLP channels: {error}") from error
    if mlps_of(empty)[0].width != kept:
        raise CompressionError(
            f"{type(model).__name__} does not take the width of its MLPs from {name}; use drop_heads or drop_layers"
        )
    return empty


def _needs(workload: Workload, _: DropChannelsConfig) -> Needs:
    """A walk with matrices; for a block five float64 matrices of the MLP's width and some 8 n³ operations."""
    from agentic_compression.methods.calibration_cost import walking_needs

    walk = walking_needs(workload, matrices=True)
    batch = 4 * min(workload.calibration_tokens, _BATCH_TOKENS) * workload.widest_input * workload.bytes_per_parameter
    width = workload.widest_input
    elimination = 8 * workload.blocks * width**3 / (_FLOPS_PER_SECOND * max(workload.threads, 1))
    return Needs(
        peak_bytes=walk.peak_bytes + _BATCH_BYTES + batch + 5 * 8 * width**2 + 3 * 8 * width * workload.hidden,
        seconds=1 + walk.seconds + elimination,
    )


METHOD = Method(
    name="drop_channels",
    category="pruning",
    config=DropChannelsConfig,
    apply=apply,
    summary="make the MLPs narrower and fit what stays to calibration text; smaller and faster anywhere",
    paper="Kurtic et al. 2023, ZipLM, arXiv:2302.04089",
    needs_calibration=True,
    may_follow=("pruning",),
    may_not_follow=("drop_channels", "magnitude", "wanda", "sparsegpt"),
    needs=_needs,
)
