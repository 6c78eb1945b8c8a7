"""GPTQ: quantization that repairs, column by column, the error it has just made.

Idea: quantize a layer's weight one input column at a time and move the columns not yet quantized so that the layer's
output on calibration data changes least, using the inverse of the Hessian ``H = 2 X Xᵀ`` of that output's squared
error (Frantar et al. 2022, arXiv:2210.17323, after Optimal Brain Quantization, arXiv:2208.11580). The inverse comes
from one Cholesky factor, columns are updated in blocks of 128, and each decoder block sees the outputs of the blocks
quantized before it.

Changes: the linears of the decoder blocks become packed integers with 16-bit scales. Weights that pruning set to zero
stay zero. With ``act_order`` the columns with the largest inputs are quantized first, with the scales fixed beforehand
so that groups stay in place and the standard format holds the result. Not covered: embeddings, norms, activations.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import Choice, Compressed, CompressionContext, Method, MethodConfig, Range

__all__ = ["METHOD", "GptqConfig", "apply", "quantize_with_gram"]

_BLOCK_COLUMNS = 128
_PRUNED_FROM = 0.05


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


def apply(model: Any, config: GptqConfig, context: CompressionContext) -> Compressed:
    """Quantize the linears of every decoder block, in place.

    Args:
        model: a causal language model with a list of decoder blocks.
        config: bits, group size, symmetry, damping, order.
        context: calibration windows, device, progress.

    Raises:
        CompressionError: when calibration data is missing or a Hessian is not finite.
    """
    from agentic_compression.checkpoints.packed_linear import PackedLinear
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.linear_layers import group_notes

    notes = []
    done = []
    for layers in walk_blocks(model, context, "gptq"):
        for name, linear, gram in layers:
            if gram.count == 0:
                notes.append(f"{name}: no calibration token reached it, rounded to nearest")
            weight = quantize_with_gram(linear.weight.detach(), gram.matrix, config)
            # The next block's inputs are computed with the exact dequantized weight, not with the rounding kernel.
            linear.weight.data.copy_(weight.dequantize(linear.weight.dtype))
            done.append((name, linear, weight))
    for name, linear, weight in done:
        model.set_submodule(name, PackedLinear(weight, linear.bias))
    notes.extend(group_notes([(name, linear.in_features) for name, linear, _ in done], config.group_size))
    return Compressed(model=model, notes=tuple(notes))


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
    import torch

    from agentic_compression.checkpoints.quantized import QuantizedTensor
    from agentic_compression.methods.linear_layers import fitting_group_size
    from agentic_compression.methods.rounding import grid, stored_scale_dtype

    w = weight.to(torch.float32).clone()
    rows, columns = w.shape
    group = fitting_group_size(columns, config.group_size)
    factor, order = _inverse_factor(gram, config)
    pruned = w == 0 if float((w == 0).float().mean()) >= _PRUNED_FROM else None
    scale, zero_point = grid(w.view(rows, columns // group, group), config.bits, config.symmetric)
    columnwise = _Columns(config, group, order, pruned, scale, zero_point)
    codes = columnwise.quantize(w[:, order], factor)
    inverse = torch.argsort(order)
    return QuantizedTensor(
        codes=codes[:, inverse].to(torch.int8).contiguous(),
        scale=columnwise.scale.to(stored_scale_dtype(weight.dtype)),
        zero_point=None if config.symmetric else columnwise.zero_point.to(torch.int8),
        bits=config.bits,
    )


def _inverse_factor(gram: Any, config: GptqConfig) -> tuple[Any, Any]:
    """Upper Cholesky factor ``U`` of the inverse of the damped Hessian, ``H⁻¹ = Uᵀ U``, and the order of the columns.

    Computed in float64. Inputs that are always zero get a unit diagonal: their columns then neither give nor take.
    """
    import torch

    from agentic_compression.errors import CompressionError

    h = gram.to(torch.float64).clone()
    if not bool(torch.isfinite(h).all()):
        raise CompressionError("gptq found NaN or infinite activations; check the model, or load it in float32")
    diagonal = h.diagonal()
    mean = float(diagonal.mean())
    dead = diagonal == 0
    diagonal[dead] = mean if mean > 0 else 1.0
    order = torch.arange(h.shape[0], device=h.device)
    if config.act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
        h = h[order][:, order]
    h.diagonal().add_(config.damp_percent * (mean if mean > 0 else 1.0))
    lower = torch.linalg.cholesky(h)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return factor.to(torch.float32), order


class _Columns:
    """The column loop of GPTQ (algorithm 1 of the paper) with scales a group."""

    def __init__(self, config: GptqConfig, group: int, order: Any, pruned: Any, scale: Any, zero_point: Any) -> None:
        self.config = config
        self.group = group
        self.order = order.tolist()
        self.pruned = pruned
        self.scale = scale
        self.zero_point = zero_point

    def quantize(self, w: Any, factor: Any) -> Any:
        """Codes ``(out_features, in_features)`` float32 of the ordered weight ``w``, which is used up."""
        import torch

        codes = torch.empty_like(w)
        columns = w.shape[1]
        for start in range(0, columns, _BLOCK_COLUMNS):
            end = min(start + _BLOCK_COLUMNS, columns)
            errors = torch.empty_like(w[:, start:end])
            for column in range(start, end):
                if column % self.group == 0 and not self.config.act_order:
                    self._fit_group(w, column, errors, factor, start, end)
                codes[:, column], restored = self._round(w[:, column], self.order[column])
                error = (w[:, column] - restored) / factor[column, column]
                w[:, column:end] -= error[:, None] * factor[column, column:end]
                errors[:, column - start] = error
            w[:, end:] -= errors @ factor[start:end, end:]
        return codes

    def _fit_group(self, w: Any, column: int, errors: Any, factor: Any, start: int, end: int) -> None:
        """Set a group's scale from its weights as they are now, updates still owed to later columns included."""
        import torch

        from agentic_compression.methods.rounding import grid

        values = w[:, column : column + self.group]
        if column + self.group > end:  # the group reaches past the block: its tail lags behind by this block's errors
            owed = errors[:, : column - start] @ factor[start:column, end : column + self.group]
            values = torch.cat((values[:, : end - column], values[:, end - column :] - owed), dim=1)
        index = column // self.group
        self.scale[:, index], self.zero_point[:, index] = grid(values, self.config.bits, self.config.symmetric)

    def _round(self, values: Any, column: int) -> tuple[Any, Any]:
        """Codes and the weights they stand for, of one column at its original position."""
        import torch

        from agentic_compression.methods.rounding import dequantize_group, round_to_grid

        scale = self.scale[:, column // self.group]
        zero_point = self.zero_point[:, column // self.group]
        codes = round_to_grid(values, scale, zero_point, self.config.bits)
        if self.pruned is not None:
            codes = torch.where(self.pruned[:, column], zero_point, codes)
        return codes, dequantize_group(codes, scale, zero_point)


METHOD = Method(
    name="gptq",
    category="quantization",
    config=GptqConfig,
    apply=apply,
    summary="quantize to 2, 3, 4 or 8 bits with calibration text, repairing rounding errors; best below 4 bits",
    paper="Frantar et al. 2022, GPTQ, arXiv:2210.17323",
    needs_calibration=True,
    may_follow=("pruning", "low_rank", "healing"),
)
