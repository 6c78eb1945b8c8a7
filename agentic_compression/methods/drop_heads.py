"""Removing attention heads, the same number in every block.

Idea: many heads can go (Michel et al. 2019, arXiv:1905.10650). A head is judged by what its removal costs the output
of the attention on calibration text once the other heads have made up for it, heads go one after the other, and the
output projection is fitted again by least squares to the output it had (Optimal Brain Surgeon for structures: Kurtic
et al. 2023, ZipLM, arXiv:2302.04089).

Changes: where several query heads share a key-value head, either whole groups go (a key-value head with its query
heads, which shrinks the key-value cache too), or the same number of query heads of every group, or both: what comes
closest to the asked share of the attention's parameters. Every block keeps as many, so the config stays plain, and
``head_dim`` is written into it. transformers refuses a Llama whose hidden size its number of heads does not divide;
such a model is stored as a Mistral without a sliding window, which computes the same. Norms of queries and keys are
shared by the heads and stay. Not covered: fused or gated projections, attention sinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

    from agentic_compression.methods.structure import Attention

__all__ = ["METHOD", "DropHeadsConfig", "Form", "apply", "choose_heads", "cut_heads", "forms"]

_TOLERANCE = 0.2
_FLOPS_PER_SECOND = 2e10
_BATCH_TOKENS = 4096
_BATCH_BYTES = 64 << 20  # inputs turned into float32, and buffers of the matrix products


class DropHeadsConfig(MethodConfig):
    """Parameters of removing heads."""

    share: Annotated[float, Range(0.1, 0.7, step=0.1)] = Field(
        default=0.3, description="share of the attention's parameters to remove, in whole heads; the nearest there is"
    )


@dataclass(frozen=True)
class Form:
    """What every block keeps.

    Attributes:
        kv_heads: key-value heads.
        group: query heads for each.
        removed: share of the attention's parameters that goes.
    """

    kv_heads: int
    group: int
    removed: float


def apply(model: Any, config: DropHeadsConfig, context: CompressionContext) -> Compressed:
    """Remove heads from every block's attention and fit the output projections again.

    Args:
        model: a causal language model with separate query, key and value projections.
        config: the share.
        context: calibration windows, device, progress.

    Returns:
        A new model that has taken the tensors of the given one; a Mistral where a Llama must not have so many heads.

    Raises:
        CompressionError: when there is no calibration data, the attention is not of a known kind, or no removal that
            is the same in every block is near the share.
    """
    import torch

    from agentic_compression.methods.column_removal import damped, repaired
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.rebuilding import check_same_output, move_tensors, probe
    from agentic_compression.methods.structure import attentions_of

    attentions = {attention.o: attention for attention in attentions_of(model)}
    first = next(iter(attentions.values()))
    form, empty = _fitting(model, first, config.share)
    kept: dict[str, list[int]] = {}
    for layers in walk_blocks(model, context, "drop_heads"):
        for name, linear, gram in layers:
            if name in attentions:
                matrix = damped(gram.matrix, name)
                heads = choose_heads(linear.weight, matrix, attentions[name], form)
                columns = attentions[name].columns(heads).to(matrix.device)
                # Zeros first, the cut at the end: the block goes on running as it is, with the same result.
                weight = torch.zeros_like(linear.weight)
                weight[:, columns] = repaired(linear.weight.detach(), matrix, columns).to(weight.dtype)
                linear.weight.data.copy_(weight)
                kept[name] = heads
    expected = probe(model, context)
    for name, attention in attentions.items():
        cut_heads(model, attention, kept[name])
    smaller = move_tensors(model, empty)
    check_same_output(smaller, expected, context)
    return Compressed(model=smaller, notes=_notes(first, form, config.share, model, smaller))


def forms(heads: int, kv_heads: int, share: float) -> list[Form]:
    """All ways to keep as many heads in every block, nearest to the share first.

    Query and output projection have ``heads`` slices of equal size, key and value projection ``kv_heads``. Of two
    equally near ones the one with fewer key-value heads comes first: its cache is smaller.
    """
    group = heads // kv_heads
    found = [
        Form(kept, each, 1 - (kept * each + kept) / (heads + kv_heads))
        for kept in range(1, kv_heads + 1)
        for each in range(1, group + 1)
        if (kept, each) != (kv_heads, group)
    ]
    return sorted(found, key=lambda form: (round(abs(form.removed - share), 9), form.kv_heads, form.group))


def choose_heads(weight: torch.Tensor, gram: torch.Tensor, attention: Attention, form: Form) -> list[int]:
    """The query heads to keep, ascending: first whole groups go, then heads of the groups that stay.

    Args:
        weight: of the output projection, ``(hidden, heads * head_dim)``.
        gram: of its inputs, damped, float64.
        attention: the block's heads.
        form: what to keep.
    """
    from agentic_compression.methods.column_removal import ColumnRemoval

    removal = ColumnRemoval(weight.detach(), gram)
    groups = {
        kv_head: list(range(kv_head * attention.group, (kv_head + 1) * attention.group))
        for kv_head in range(attention.kv_heads)
    }
    while len(groups) > form.kv_heads:
        costs = {kv_head: removal.cost(attention.columns(heads)) for kv_head, heads in groups.items()}
        cheapest = min(costs, key=lambda kv_head: (costs[kv_head], kv_head))
        removal.remove(attention.columns(groups.pop(cheapest)))
    while open_groups := [heads for heads in groups.values() if len(heads) > form.group]:
        prices = {head: removal.cost(attention.columns([head])) for heads in open_groups for head in heads}
        cheapest = min(prices, key=lambda head: (prices[head], head))
        removal.remove(attention.columns([cheapest]))
        groups[cheapest // attention.group].remove(cheapest)
    return sorted(head for heads in groups.values() for head in heads)


def _fitting(model: Any, attention: Attention, share: float) -> tuple[Form, Any]:
    """The form nearest to the share that the architecture can have, with the empty model of that form.

    Raises:
        CompressionError: when none is near, naming the shares that can be had.
    """
    possible = []
    refused = ""
    for form in forms(attention.heads, attention.kv_heads, share):
        empty, reason = _empty(model, attention, form)
        refused = refused or reason
        if empty is not None:
            if abs(form.removed - share) <= _TOLERANCE:
                return form, empty
            possible.append(form.removed)
    allowed = ", ".join(f"{removed:.2g}" for removed in sorted(set(possible))) or "none"
    raise CompressionError(
        f"{type(model).__name__} with {attention.heads} query and {attention.kv_heads} key-value heads has no removal "
        f"within {_TOLERANCE} of share {share} that is the same in every block; possible shares: {allowed}"
        f"{' (' + refused + ')' if refused else ''}; use one of them, or drop_channels"
    )


def _empty(model: Any, attention: Attention, form: Form) -> tuple[Any, str]:
    """The model with so many heads, without storage, or None and why not."""
    from agentic_compression.methods.rebuilding import ConfigRefusedError, empty_mistral, empty_model
    from agentic_compression.methods.structure import attentions_of

    heads = form.kv_heads * form.group
    settings = {"num_attention_heads": heads, "num_key_value_heads": form.kv_heads, "head_dim": attention.head_dim}
    reason = ""
    for build in (empty_model, empty_mistral):
        try:
            empty = build(model, settings)
            found = attentions_of(empty)[0]
        except (ConfigRefusedError, CompressionError) as error:
            reason = reason or str(error)
            continue
        if (found.heads, found.kv_heads, found.head_dim) == (heads, form.kv_heads, attention.head_dim):
            return empty, ""
        reason = reason or "its config cannot hold a head_dim of its own"
    return None, reason


def cut_heads(model: Any, attention: Attention, heads: Sequence[int]) -> None:
    """Cut a block's projections to these query heads and the key-value heads they use; nothing is repaired."""
    from agentic_compression.methods.structure import keep_columns, keep_rows

    kv_heads = sorted({head // attention.group for head in heads})
    keep_columns(model.get_submodule(attention.o), attention.columns(heads))
    keep_rows(model.get_submodule(attention.q), attention.columns(heads))
    keep_rows(model.get_submodule(attention.k), attention.columns(kv_heads))
    keep_rows(model.get_submodule(attention.v), attention.columns(kv_heads))


def _notes(attention: Attention, form: Form, share: float, before: Any, after: Any) -> tuple[str, ...]:
    notes = [
        f"kept {form.kv_heads * form.group} of {attention.heads} query and {form.kv_heads} of {attention.kv_heads} "
        f"key-value heads in each block: {form.removed:.1%} of the attention's parameters removed, asked {share:.0%}"
    ]
    if type(after) is not type(before):
        notes.append(
            f"stored as {type(after).__name__}: transformers refuses a {type(before).__name__} whose hidden size "
            "the number of heads does not divide"
        )
    return tuple(notes)


def _needs(workload: Workload, _: DropHeadsConfig) -> Needs:
    """A walk with matrices; for a block five float64 matrices of the attention's width and some 16 n³ operations."""
    from agentic_compression.methods.calibration_cost import walking_needs

    walk = walking_needs(workload, matrices=True)
    batch = 4 * min(workload.calibration_tokens, _BATCH_TOKENS) * workload.widest_input * workload.bytes_per_parameter
    hidden = workload.hidden
    elimination = 16 * workload.blocks * hidden**3 / (_FLOPS_PER_SECOND * max(workload.threads, 1))
    return Needs(
        peak_bytes=walk.peak_bytes + _BATCH_BYTES + batch + 8 * 8 * hidden**2, seconds=1 + walk.seconds + elimination
    )


METHOD = Method(
    name="drop_heads",
    category="pruning",
    config=DropHeadsConfig,
    apply=apply,
    summary="remove attention heads with their keys and values and fit what stays to calibration text; smaller cache",
    paper="Michel et al. 2019, arXiv:1905.10650; Kurtic et al. 2023, ZipLM, arXiv:2302.04089",
    needs_calibration=True,
    may_follow=("pruning",),
    may_not_follow=("drop_heads", "magnitude", "wanda", "sparsegpt"),
    needs=_needs,
)
