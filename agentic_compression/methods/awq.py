"""AWQ: activation-aware weight quantization.

Idea: a few input channels carry large activations, and rounding the weights that read them costs most. Multiplying
those weight columns by a scale before rounding, and dividing the inputs by it, makes their rounding error smaller at
little cost to the others (Lin et al. 2023, arXiv:2306.00978). The scales are ``s = mean|x|^α``, normalised by
``sqrt(max s · min s)``, with α from 20 values so that the outputs of the linears that read the input change least; that
error is ``tr(ΔW G ΔWᵀ)`` with ``G`` the mean of ``x xᵀ``, exact for the calibration text. Then every group's range is
shrunk, down to half, where that lowers its own part of the error.

Changes: the linears of the decoder blocks become packed integers with 16-bit scales, and the norms or linears before
them take the inverse scales, so that the standard format holds the result and no operation is added. Where the
operation before cannot take them exactly (see :mod:`folding`) a linear is rounded without scales, with a note. Not
covered: embeddings, activations.
"""

from __future__ import annotations

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
    Workload,
)

if TYPE_CHECKING:
    import torch

    from agentic_compression.checkpoints.quantized import QuantizedTensor
    from agentic_compression.methods.folding import Fold
    from agentic_compression.methods.layerwise import Gram

__all__ = ["METHOD", "AwqConfig", "apply", "channel_scales", "output_error", "round_weight", "search_alpha"]

_ALPHAS = 20
_RATIOS = tuple(1 - step / 20 for step in range(11))
_DAMP = 0.01  # of the Hessian's mean diagonal
_BLOCK_COLUMNS = 128
_SMALLEST = 1e-4  # of the mean: channels that are (almost) always zero count as this large
_SEARCHED_ROWS = 1024  # of every linear, evenly spaced: α is one number for a whole input


class AwqConfig(MethodConfig):
    """Parameters of AWQ."""

    bits: Annotated[int, Choice(2, 3, 4, 8)] = Field(default=4, description="bits a weight")
    group_size: Annotated[int, Choice(-1, 32, 64, 128)] = Field(
        default=64, description="input weights that share a scale; -1: a whole row"
    )
    symmetric: Annotated[bool, Choice(True, False)] = Field(
        default=False, description="grid centred on zero; false stores a zero point a group"
    )
    rounding: Annotated[str, Choice("nearest", "gptq")] = Field(
        default="gptq", description="how the scaled weights are rounded; gptq repairs its errors column by column"
    )
    clip: Annotated[bool, Choice(True, False)] = Field(
        default=True, description="shrink the range of groups where that lowers the output's error"
    )


def apply(model: Any, config: AwqConfig, context: CompressionContext) -> Compressed:
    """Scale and quantize the linears of every decoder block, in place.

    Args:
        model: a causal language model with a list of decoder blocks.
        config: bits, group size, symmetry, rounding, clipping.
        context: calibration windows, device, progress.

    Raises:
        CompressionError: when there is no calibration data, nothing can be folded, or an activation is not finite.
    """
    from agentic_compression.checkpoints.packed_linear import PackedLinear
    from agentic_compression.methods.folding import find_folds
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.linear_layers import group_notes, target_linears

    if not context.calibration:
        raise CompressionError("awq needs calibration text, got none; give calibration_path, or use rtn")
    folds = find_folds(model, context.calibration[0].to(context.device), [name for name, _ in target_linears(model)])
    if not any(folds):
        raise CompressionError(
            f"awq found no norm or linear in the blocks of {type(model).__name__} that can take scales exactly; "
            "use gptq or autoround"
        )
    notes: list[str] = []
    widths: list[tuple[str, int]] = []
    waiting: list[tuple[str, Any, QuantizedTensor]] = []
    for index, layers in enumerate(walk_blocks(model, context, "awq")):
        _pack(model, waiting, PackedLinear)
        block = _Block(model, layers)
        for fold in folds[index]:
            notes.extend(block.scale(fold, config))
        notes.extend(block.notes(folds[index]))
        for name, linear, gram in layers:
            weight = block.quantize(name, gram, config)
            linear.weight.data.copy_(weight.dequantize(linear.weight.dtype))
            waiting.append((name, linear, weight))
            widths.append((name, linear.in_features))
    _pack(model, waiting, PackedLinear)
    return Compressed(model=model, notes=(*_merged(notes), *group_notes(widths, config.group_size)))


class _Block:
    """The linears of one block, in float32 while scales move between them."""

    def __init__(self, model: Any, layers: list[tuple[str, Any, Gram]]) -> None:
        import torch

        self._model = model
        self._linears = {name: linear for name, linear, _ in layers}
        self._grams = {name: gram for name, _, gram in layers}
        self._weights = {name: linear.weight.detach().to(torch.float32) for name, linear, _ in layers}
        self._scales: dict[str, torch.Tensor] = {}

    def scale(self, fold: Fold, config: AwqConfig) -> list[str]:
        """Find a fold's scales and move them; says where it was not done."""
        gram = self._grams[fold.consumers[0]]
        if gram.count == 0:
            return [f"{fold.consumers[0]}: no calibration token reached it, rounded without scales"]
        weights = [self._weights[name] for name in fold.consumers]
        _, scales = search_alpha(weights, gram.matrix, gram.mean_absolute, fold.source.to(gram.matrix.device), config)
        self._move(fold, scales)
        return []

    def _move(self, fold: Fold, scales: torch.Tensor) -> None:
        from agentic_compression.methods.folding import folded_producer

        producer = self._model.get_submodule(fold.producer)
        master = self._weights.get(fold.producer)
        weight, bias, scales = folded_producer(
            fold, producer.weight.detach() if master is None else master, getattr(producer, "bias", None), scales
        )
        if master is None:
            producer.weight.data.copy_(weight)
        else:
            self._weights[fold.producer] = weight
        if bias is not None:
            producer.bias.data.copy_(bias)
        for name in fold.consumers:
            self._scales[name] = scales[fold.source.to(scales.device)]
            self._weights[name] = self._weights[name] * self._scales[name]

    def quantize(self, name: str, gram: Gram, config: AwqConfig) -> QuantizedTensor:
        """Round one linear as it is now."""
        from agentic_compression.methods.rounding import stored_scale_dtype

        weight, moments = self._weights.pop(name), gram.matrix
        if name in self._scales:
            scales = self._scales[name]
            moments = moments / scales[:, None] / scales
        stored = stored_scale_dtype(self._linears[name].weight.dtype)
        return round_weight(weight, config, moments if gram.count else None, stored)

    def notes(self, folds: list[Fold]) -> list[str]:
        """Which linears got no scales."""
        scaled = {name for fold in folds for name in fold.consumers}
        return [
            f"{name.rpartition('.')[2]}: nothing before it can take scales exactly, rounded without"
            for name in self._weights
            if name not in scaled
        ]


def channel_scales(mean_absolute: torch.Tensor, alpha: float) -> torch.Tensor:
    """``mean|x|^α`` with the geometric mean of its extremes at 1, float32.

    Args:
        mean_absolute: of every channel; those below 0.0001 of the mean count as that large.
        alpha: 0 for no scales.
    """
    import torch

    mean = float(mean_absolute.mean())
    if mean == 0:
        return torch.ones_like(mean_absolute)
    scales = (mean_absolute / mean).clamp(min=_SMALLEST) ** alpha
    normalised: torch.Tensor = scales / (scales.max() * scales.min()).sqrt()
    return normalised


def search_alpha(
    weights: list[torch.Tensor],
    gram: torch.Tensor,
    mean_absolute: torch.Tensor,
    source: torch.Tensor,
    config: AwqConfig,
) -> tuple[float, torch.Tensor]:
    """The best α of 0, 0.05, …, 0.95 for linears that read the same input (equation 5 of the paper).

    Args:
        weights: float32 ``(out_features, in_features)``.
        gram: mean of ``x xᵀ``.
        mean_absolute: mean of ``|x|``, ``(in_features,)``.
        source: which scale an input channel takes, ``(in_features,)``; channels that share one count with their mean.
        config: bits, group size, symmetry.

    Returns:
        α and the scales, ``(max(source) + 1,)``.
    """
    import torch

    shared = torch.zeros(int(source.max()) + 1, dtype=torch.float32, device=source.device)
    shared.index_add_(0, source, mean_absolute).div_(torch.bincount(source).clamp(min=1))
    rows = [weight[:: -(-weight.shape[0] // _SEARCHED_ROWS)] for weight in weights]
    best, chosen = float("inf"), (0.0, torch.ones_like(shared))
    for step in range(_ALPHAS):
        scales = channel_scales(shared, step / _ALPHAS)
        wide = scales[source]
        error = 0.0
        for weight in rows:
            restored = round_weight(weight * wide, config, None).dequantize() / wide
            error += output_error(restored - weight, gram)
        if error < best:
            best, chosen = error, (step / _ALPHAS, scales)
    return chosen


def output_error(difference: torch.Tensor, gram: torch.Tensor) -> float:
    """``tr(ΔW G ΔWᵀ)``: the mean squared change of a linear's output, summed over its rows."""
    return float(((difference @ gram) * difference).sum())


def round_weight(
    weight: torch.Tensor, config: AwqConfig, gram: torch.Tensor | None, stored: torch.dtype | None = None
) -> QuantizedTensor:
    """Round a weight on the grids its groups' extremes, or the search for narrower ranges, give.

    Args:
        weight: float32 ``(out_features, in_features)``.
        config: bits, group size, symmetry, clipping and, with ``gram``, rounding.
        gram: mean of ``x xᵀ`` of the inputs; None rounds to nearest over the whole range.
        stored: type of the scales; None: bfloat16.
    """
    import torch

    from agentic_compression.checkpoints.quantized import QuantizedTensor
    from agentic_compression.methods.linear_layers import fitting_group_size
    from agentic_compression.methods.rounding import grid, round_to_grid, smallest_scale

    stored = stored or torch.bfloat16
    smallest = smallest_scale(stored)
    rows, columns = weight.shape
    size = fitting_group_size(columns, config.group_size)
    values = weight.view(rows, columns // size, size)
    if gram is not None and config.clip:
        scale, zero_point = clipped_grid(values, gram, config, smallest)
    else:
        scale, zero_point = grid(values, config.bits, config.symmetric, smallest=smallest)
    if gram is not None and config.rounding == "gptq":
        codes = repaired_codes(weight, gram, scale, zero_point, config.bits)
    else:
        codes = round_to_grid(values, scale[..., None], zero_point[..., None], config.bits)
    return QuantizedTensor(
        codes=codes.reshape(rows, columns).to(torch.int8),
        scale=scale.to(stored),
        zero_point=None if config.symmetric else zero_point.to(torch.int8),
        bits=config.bits,
    )


def clipped_grid(
    values: torch.Tensor, gram: torch.Tensor, config: AwqConfig, smallest: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of every group's range times the ratio of 1, 0.95, …, 0.5 that changes the output least.

    The change is that of the group alone, ``δw Gₘ δwᵀ`` with the group's part of ``G``.

    Args:
        values: float32 ``(out_features, groups, group)``.
        gram: mean of ``x xᵀ`` of the inputs.
        config: bits, symmetry.
        smallest: scale.
    """
    import torch

    from agentic_compression.methods.rounding import grid, round_to_grid

    size = values.shape[2]
    blocks = torch.stack([part[:, i * size : (i + 1) * size] for i, part in enumerate(gram.split(size))])
    scale, zero_point = grid(values, config.bits, config.symmetric, smallest=smallest)
    least = torch.full_like(scale, float("inf"))
    for ratio in _RATIOS:
        tried, point = grid(values * ratio, config.bits, config.symmetric, smallest=smallest)
        codes = round_to_grid(values, tried[..., None], point[..., None], config.bits)
        change = (codes - point[..., None]) * tried[..., None] - values
        error = (torch.matmul(change.transpose(0, 1), blocks).transpose(0, 1) * change).sum(dim=-1)
        lower = error < least
        least = torch.where(lower, error, least)
        scale, zero_point = torch.where(lower, tried, scale), torch.where(lower, point, zero_point)
    return scale, zero_point


def repaired_codes(
    weight: torch.Tensor, gram: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, bits: int
) -> torch.Tensor:
    """Codes ``(out_features, in_features)`` on given grids, each column's error moved to later columns as in GPTQ."""
    import torch

    from agentic_compression.methods.inverse_factor import inverse_factor
    from agentic_compression.methods.rounding import dequantize_group, round_to_grid

    w, hessian = weight.clone(), gram.to(torch.float32).clone()
    pruned = w == 0
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = float(diagonal.mean()) or 1.0
    factor, _ = inverse_factor(hessian, _DAMP)
    codes = torch.empty_like(w)
    columns, size = w.shape[1], w.shape[1] // scale.shape[1]
    for start in range(0, columns, _BLOCK_COLUMNS):
        end = min(start + _BLOCK_COLUMNS, columns)
        errors = torch.empty_like(w[:, start:end])
        for column in range(start, end):
            steps, zero = scale[:, column // size], zero_point[:, column // size]
            code = round_to_grid(w[:, column], steps, zero, bits)
            codes[:, column] = torch.where(pruned[:, column], zero, code)
            change = w[:, column] - dequantize_group(codes[:, column], steps, zero)
            errors[:, column - start] = change / factor[column, column]
            w[:, column:end] -= errors[:, column - start, None] * factor[column, column:end]
        w[:, end:] -= errors @ factor[start:end, end:]
    return codes


def _pack(model: Any, waiting: list[tuple[str, Any, QuantizedTensor]], kind: Any) -> None:
    """Only after the next block's inputs were computed, with the exact dequantized weights."""
    while waiting:
        name, linear, weight = waiting.pop()
        model.set_submodule(name, kind(weight, linear.bias))


def _merged(notes: list[str]) -> list[str]:
    """Every note once, with how often it occurred."""
    counts: dict[str, int] = {}
    for note in notes:
        counts[note] = counts.get(note, 0) + 1
    return [note if count == 1 else f"{note} (in {count} blocks)" for note, count in counts.items()]


def _needs(workload: Workload, config: AwqConfig) -> Needs:
    """A walk over the blocks, and one block's weights in float32 three times over."""
    from agentic_compression.methods.calibration_cost import walking_needs

    walk = walking_needs(workload, matrices=True)
    block = workload.linear_parameters // max(1, workload.blocks)
    passes = _ALPHAS + len(_RATIOS) * config.clip + 2 * (config.rounding == "gptq")
    return Needs(
        peak_bytes=walk.peak_bytes + 12 * block + 8 * workload.widest_input**2,
        seconds=walk.seconds
        + 2.0 * passes * workload.linear_parameters * workload.widest_input / (2e10 * max(1, workload.threads)),
    )


METHOD = Method(
    name="awq",
    category="quantization",
    stored_as="packed",
    config=AwqConfig,
    apply=apply,
    summary="scale the weight columns that read large activations before rounding them; good at 4 bits, takes seconds",
    paper="Lin et al. 2023, AWQ, arXiv:2306.00978",
    needs_calibration=True,
    may_follow=("pruning", "low_rank", "healing"),
    needs=_needs,
)
