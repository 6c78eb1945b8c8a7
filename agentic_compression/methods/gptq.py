"""GPTQ: quantization that repairs, column by column, the error it has just made.

Idea: quantize a layer's weight one input column at a time and move the columns not yet quantized so that the layer's
output on calibration data changes least, using the inverse of the Hessian ``H = 2 X Xᵀ`` of that output's squared
error (Frantar et al. 2022, arXiv:2210.17323, after Optimal Brain Quantization, arXiv:2208.11580). The inverse comes
from one Cholesky factor, columns are updated in blocks of 128, and each decoder block sees the outputs of the blocks
quantized before it.

Changes: the linears of the decoder blocks become packed integers with 16-bit scales. Weights that pruning set to zero
stay zero. With ``act_order`` the columns with the largest inputs are quantized first, with the scales fixed beforehand
so that groups stay in place and the standard format holds the result. With ``least_error`` scales clip extremes where
that rounds the rest better, which matters below 4 bits. Not covered: embeddings, norms, activations, experts that are
one tensor for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

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

__all__ = ["METHOD", "GptqConfig", "apply", "needs", "quantize_with_gram"]

_BLOCK_COLUMNS = 128
_STEP_COLUMNS = 32
_PRUNED_FROM = 0.05
_PERMUTED_AT_ONCE = 512
# For estimates, on the reference core of 2e10 operations a second.
_FLOPS_PER_SECOND = 2e10
_COLUMN_SECONDS = 5e-4
_SEARCH_SECONDS = 7e-7  # a weight
_TOKENS_AT_ONCE = 2048
_FLOAT64_UP_TO = 4096


class GptqConfig(MethodConfig):
    """Parameters of GPTQ."""

    bits: Annotated[int, Choice(2, 3, 4, 8)] = Field(default=4, description="bits a weight")
    group_size: Annotated[int, Choice(-1, 32, 64, 128)] = Field(
        default=64, description="input weights that share a scale; -1: a whole row"
    )
    symmetric: Annotated[bool, Choice(True, False)] = Field(
        default=False, description="grid centred on zero; false stores a zero point a group"
    )
    damp_percent: Annotated[float, Range(0.005, 0.1)] = Field(
        default=0.01, description="fraction of the Hessian's mean diagonal added to it"
    )
    act_order: Annotated[bool, Choice(True, False)] = Field(
        default=False, description="quantize the columns with the largest inputs first"
    )
    least_error: Annotated[bool, Choice(True, False)] = Field(
        default=True, description="search scales for the least rounding error; else they reach the extremes"
    )


def apply(model: Any, config: GptqConfig, context: CompressionContext) -> Compressed:
    """Quantize the linears of every decoder block, in place.

    Args:
        model: a causal language model with a list of decoder blocks.
        config: bits, group size, symmetry, damping, order.
        context: calibration windows, device, progress.

    Raises:
        CompressionError: when calibration data is missing or a Hessian is not finite.
    """
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.linear_layers import group_notes, require_linears, uncovered_notes

    require_linears(model, "gptq")
    notes = [*uncovered_notes(model)]
    widths: list[tuple[str, int]] = []
    waiting: list[tuple[str, Any, Any]] = []
    for layers in walk_blocks(model, context, "gptq"):
        # Only now: the inputs of this block were computed with the exact dequantized weights of the one before, not
        # with the packed layer's rounding kernel.
        _pack(model, waiting)
        widths.extend((name, linear.in_features) for name, linear, _ in layers)
        notes.extend(_quantize_block(layers, config, waiting))
    _pack(model, waiting)
    notes.extend(group_notes(widths, config.group_size))
    return Compressed(model=model, notes=tuple(notes))


def _quantize_block(layers: list[Any], config: GptqConfig, waiting: list[tuple[str, Any, Any]]) -> list[str]:
    """Quantize one block's linears, leave them dense and exact, and return notes. Statistics are used up."""
    notes = []
    factors: dict[int, _Factor] = {}
    for name, linear, gram in layers:
        if gram.count == 0:
            notes.append(f"{name}: no calibration token reached it, rounded to nearest")
        if id(gram) not in factors:
            factors[id(gram)] = _factor(name, gram.matrix, config, overwrite=True)
        factor = factors[id(gram)]
        if factor.damping > config.damp_percent:
            notes.append(f"{name}: damped with {factor.damping:g} of the Hessian's mean diagonal")
        weight = _quantize(linear.weight.detach(), factor, config)
        linear.weight.data.copy_(weight.dequantize(linear.weight.dtype))
        waiting.append((name, linear, weight))
    return notes


def _pack(model: Any, waiting: list[tuple[str, Any, Any]]) -> None:
    from agentic_compression.checkpoints.packed_linear import PackedLinear

    while waiting:
        name, linear, weight = waiting.pop()
        model.set_submodule(name, PackedLinear(weight, linear.bias))


def quantize_with_gram(weight: Any, gram: Any, config: GptqConfig) -> Any:
    """Quantize one weight for the inputs it sees.

    Args:
        weight: ``(out_features, in_features)``.
        gram: mean of ``x xᵀ`` over the inputs, ``(in_features, in_features)``; the Hessian up to a factor, which GPTQ's
            updates do not depend on.
        config: bits, group size, symmetry, damping, order.

    Returns:
        A ``QuantizedTensor``.

    Raises:
        CompressionError: when the Gram matrix holds NaN or infinity.
    """
    return _quantize(weight, _factor("a linear", gram, config), config)


@dataclass(frozen=True)
class _Factor:
    """``U`` of ``H⁻¹ = Uᵀ U`` for the columns in this order, and the damping it took."""

    upper: Any
    order: Any
    damping: float


def _factor(name: str, gram: Any, config: GptqConfig, *, overwrite: bool = False) -> _Factor:
    """Factor of the inverse Hessian; inputs that are always zero get a mean diagonal: they neither give nor take."""
    import torch

    from agentic_compression.errors import CompressionError
    from agentic_compression.methods.inverse_factor import inverse_factor

    h = gram if overwrite else gram.to(torch.float32).clone()
    diagonal = h.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise CompressionError(f"gptq found NaN or infinite activations at {name}; check the model, or use float32")
    mean = float(diagonal.mean())
    diagonal[diagonal == 0] = mean if mean > 0 else 1.0
    order = torch.arange(h.shape[0], device=h.device)
    if config.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        for start in range(0, h.shape[0], _PERMUTED_AT_ONCE):
            rows = h[:, start : start + _PERMUTED_AT_ONCE]
            rows.copy_(rows[order])
        for start in range(0, h.shape[0], _PERMUTED_AT_ONCE):
            columns = h[start : start + _PERMUTED_AT_ONCE]
            columns.copy_(columns[:, order])
    upper, damping = inverse_factor(h, config.damp_percent)
    return _Factor(upper=upper, order=order, damping=damping)


def _quantize(weight: Any, factor: _Factor, config: GptqConfig) -> Any:
    import torch

    from agentic_compression.checkpoints.quantized import QuantizedTensor
    from agentic_compression.methods.linear_layers import fitting_group_size
    from agentic_compression.methods.rounding import grid, smallest_scale, stored_scale_dtype

    rows, columns = weight.shape
    group = fitting_group_size(columns, config.group_size)
    w = weight.T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)  # a column's weights side by side
    stored = stored_scale_dtype(weight.dtype)
    smallest = smallest_scale(stored)
    scale = torch.empty((columns // group, rows), dtype=torch.float32, device=w.device)
    zero_point = torch.empty_like(scale)
    if config.act_order:
        for index in range(columns // group):
            values = w[index * group : (index + 1) * group].T
            found = grid(values, config.bits, config.symmetric, least_error=config.least_error, smallest=smallest)
            scale[index], zero_point[index] = found
        w = w[factor.order]
    loop = _Columns(config, group, factor, (scale, zero_point), smallest)
    loop.quantize(w)
    if config.act_order:
        w = w[torch.argsort(factor.order)]
    w.view(columns // group, group, rows).add_(zero_point[:, None])
    return QuantizedTensor(
        codes=w.to(torch.int8).T.contiguous(),
        scale=scale.T.to(stored).contiguous(),
        zero_point=None if config.symmetric else zero_point.T.to(torch.int8).contiguous(),
        bits=config.bits,
    )


class _Columns:
    """The column loop of GPTQ (algorithm 1 of the paper) with scales a group, over a transposed weight.

    Errors are passed on in two steps: within 32 columns at once, to the rest of 128 columns when those 32 are done, and
    to all later columns when the 128 are done, which makes almost all of the work matrix products.
    """

    def __init__(
        self, config: GptqConfig, group: int, factor: _Factor, scale_and_zero_point: tuple[Any, Any], smallest: float
    ) -> None:
        self._config = config
        self._group = group
        self._factor = factor.upper
        self._pivots = factor.upper.diagonal().tolist()
        self._order = factor.order.tolist()
        self._scale, self._zero_point = scale_and_zero_point
        self._smallest = smallest

    def quantize(self, w: Any) -> None:
        """Replace the ordered weight ``w``, ``(in_features, out_features)``, by its codes less their zero points."""
        import torch

        columns, rows = w.shape
        pruned = w == 0
        if float(pruned.sum()) < _PRUNED_FROM * w.numel():
            pruned = None
        errors = torch.empty((min(columns, _BLOCK_COLUMNS), rows), dtype=w.dtype, device=w.device)
        for start in range(0, columns, _BLOCK_COLUMNS):
            end = min(start + _BLOCK_COLUMNS, columns)
            for first in range(start, end, _STEP_COLUMNS):
                last = min(first + _STEP_COLUMNS, end)
                for column in range(first, last):
                    if column % self._group == 0 and not self._config.act_order:
                        self._fit_group(w, column, errors, (start, first, last, end))
                    error = errors[column - start]
                    self._round(w[column], error, column, None if pruned is None else pruned[column])
                    if column + 1 < last:
                        w[column + 1 : last].addr_(self._factor[column, column + 1 : last], error, alpha=-1)
                if last < end:
                    self._pass_on(w[last:end], errors[first - start : last - start], first, last)
            if end < columns:
                self._pass_on(w[end:], errors[: end - start], start, end)

    def _pass_on(self, later: Any, errors: Any, first: int, last: int) -> None:
        """Take the errors of columns ``first`` to ``last`` off the columns from ``last`` on."""
        later.addmm_(self._factor[first:last, last : last + later.shape[0]].T, errors, alpha=-1)

    def _fit_group(self, w: Any, column: int, errors: Any, bounds: tuple[int, int, int, int]) -> None:
        """Set a group's scale from its weights as they are now, updates still owed to later columns included."""
        from agentic_compression.methods.rounding import grid

        start, first, last, end = bounds
        until = column + self._group
        values = w[column:until]
        if until > last:
            values = values.clone()
            near, far = min(until, end), max(until, end)
            owed = errors[first - start : column - start]
            values[last - column : near - column].addmm_(self._factor[first:column, last:near].T, owed, alpha=-1)
            if far > end:
                owed = errors[: column - start]
                values[end - column :].addmm_(self._factor[start:column, end:until].T, owed, alpha=-1)
        index = column // self._group
        self._scale[index], self._zero_point[index] = grid(
            values.T,
            self._config.bits,
            self._config.symmetric,
            least_error=self._config.least_error,
            smallest=self._smallest,
        )

    def _round(self, values: Any, error: Any, column: int, pruned: Any) -> None:
        """Replace one column's weights by their codes less the zero points, and set its scaled error."""
        import torch

        group = self._order[column] // self._group
        scale, zero_point = self._scale[group], self._zero_point[group]
        lowest = -(2 ** (self._config.bits - 1))
        code = torch.round(values / scale)
        if self._config.symmetric:
            code.clamp_(lowest, -lowest - 1)
        else:
            code.clamp_(lowest - zero_point, -lowest - 1 - zero_point)
        if pruned is not None:
            code.masked_fill_(pruned, 0)
        torch.mul(code, scale, out=error)
        torch.sub(values, error, out=error).div_(self._pivots[column])
        values.copy_(code)


def needs(workload: Workload, config: GptqConfig) -> Needs:
    """The model, one block's Gram matrices, a float64 factor or its panels, one layer's float32 copy, activations.

    Operations: two passes over the text, the Gram matrices, a factorisation and a triangular inverse of each, and the
    columns' updates, which for a layer are as many as outputs times squared inputs; and what a column costs to begin.
    """
    from agentic_compression.methods.calibration_cost import walking_needs

    hidden, widest, blocks = workload.hidden, workload.widest_input, workload.blocks
    walk = walking_needs(workload, matrices=True)
    factor = 8 * widest**2 if widest <= _FLOAT64_UP_TO else 8 * widest * 1024
    layer = 6 * widest * hidden
    activations = min(workload.calibration_tokens, _TOKENS_AT_ONCE) * (3 * widest + 6 * hidden)
    a_block = workload.linear_parameters / blocks
    factorising = 2 * (3 * hidden**3 + widest**3)
    updating = 2 * (hidden * widest**2 + max(0.0, a_block - hidden * widest) * hidden)
    columns = 6 * hidden + widest
    searching = _SEARCH_SECONDS * a_block if config.least_error else 0.0
    products = (factorising + updating) / (_FLOPS_PER_SECOND * max(1, workload.threads))
    return Needs(
        peak_bytes=walk.peak_bytes + factor + layer + workload.bytes_per_parameter * activations,
        seconds=walk.seconds + blocks * (products + columns * _COLUMN_SECONDS + searching),
    )


METHOD = Method(
    name="gptq",
    category="quantization",
    stored_as="packed",
    config=GptqConfig,
    apply=apply,
    summary="quantize to 2, 3, 4 or 8 bits with calibration text, repairing rounding errors; best below 4 bits",
    paper="Frantar et al. 2022, GPTQ, arXiv:2210.17323",
    needs_calibration=True,
    version="3",
    needs=needs,
    may_follow=("pruning", "low_rank", "healing"),
)
