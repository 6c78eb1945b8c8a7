"""Round-to-nearest weight-only quantization.

Idea: every group of consecutive input weights of a row gets one scale from its extremes, and every weight the nearest
of the grid's levels. No data is needed. It is the baseline every other quantizer is measured against, described for
language models by Dettmers et al. 2022 (LLM.int8(), arXiv:2208.07339) and Yao et al. 2022 (ZeroQuant,
arXiv:2206.01861).

Changes: all linears except the output embedding become packed integers with 16-bit scales. Not covered: embeddings,
norms, activations and the key-value cache stay in floating point.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import (
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Workload,
)

__all__ = ["METHOD", "RtnConfig", "apply", "needs", "quantize"]

_ELEMENTS_AT_ONCE = 1 << 22
_SECONDS_A_WEIGHT = 1e-7  # on the reference core of 2e10 operations a second
_SEARCH_COST = 8


class RtnConfig(MethodConfig):
    """Parameters of round-to-nearest."""

    bits: Annotated[int, Choice(2, 3, 4, 8)] = Field(default=4, description="bits a weight")
    group_size: Annotated[int, Choice(-1, 32, 64, 128)] = Field(
        default=64, description="input weights that share a scale; -1: a whole row"
    )
    symmetric: Annotated[bool, Choice(True, False)] = Field(
        default=False, description="grid centred on zero; false stores a zero point a group"
    )
    least_error: Annotated[bool, Choice(True, False)] = Field(
        default=False, description="search scales for the least rounding error; else they reach the extremes"
    )


def apply(model: Any, config: RtnConfig, context: CompressionContext) -> Compressed:
    """Quantize every target linear, one after the other, in place.

    Args:
        model: a causal language model; weights ``(out_features, in_features)``.
        config: bits, group size, symmetry.
        context: device and progress; no calibration data is used.
    """
    from agentic_compression.checkpoints.packed_linear import PackedLinear
    from agentic_compression.methods.linear_layers import group_notes, require_linears, uncovered_notes
    from agentic_compression.resident_memory import give_back_heap

    names = [(name, linear.in_features) for name, linear in require_linears(model, "rtn")]
    for done, (name, _) in enumerate(names):
        context.progress("rtn", done, len(names))
        linear = model.get_submodule(name)  # a list of the layers would keep the dense weights in memory
        model.set_submodule(name, PackedLinear(quantize(linear.weight.detach(), config), linear.bias))
        del linear
        give_back_heap()
    context.progress("rtn", len(names), len(names))
    return Compressed(model=model, notes=(*uncovered_notes(model), *group_notes(names, config.group_size)))


def quantize(weight: Any, config: RtnConfig) -> Any:
    """Round one weight ``(out_features, in_features)`` to a ``QuantizedTensor``."""
    import torch

    from agentic_compression.checkpoints.quantized import QuantizedTensor
    from agentic_compression.methods.linear_layers import fitting_group_size
    from agentic_compression.methods.rounding import grid, round_to_grid, smallest_scale, stored_scale_dtype

    rows, columns = weight.shape
    groups = columns // fitting_group_size(columns, config.group_size)
    codes = torch.empty((rows, columns), dtype=torch.int8, device=weight.device)
    scale = torch.empty((rows, groups), dtype=stored_scale_dtype(weight.dtype), device=weight.device)
    zero_point = torch.empty((rows, groups), dtype=torch.int8, device=weight.device)
    step = max(1, _ELEMENTS_AT_ONCE // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        grouped = weight[part].to(torch.float32).reshape(-1, groups, columns // groups)
        scales, zeros = grid(
            grouped, config.bits, config.symmetric, least_error=config.least_error, smallest=smallest_scale(scale.dtype)
        )
        rounded = round_to_grid(grouped, scales[..., None], zeros[..., None], config.bits)
        codes[part], scale[part], zero_point[part] = rounded.view(-1, columns), scales, zeros
    return QuantizedTensor(
        codes=codes, scale=scale, zero_point=None if config.symmetric else zero_point, bits=config.bits
    )


def needs(workload: Workload, config: RtnConfig) -> Needs:
    """The model, a few float32 copies of a part of one layer, and its codes twice; a rate of weights a second."""
    layer = workload.hidden * workload.widest_input
    copies = 4 * min(layer, _ELEMENTS_AT_ONCE) * (8 if config.least_error else 5)
    seconds = workload.linear_parameters * _SECONDS_A_WEIGHT * (_SEARCH_COST if config.least_error else 1)
    return Needs(peak_bytes=workload.weight_bytes + copies + 2 * layer, seconds=seconds)


METHOD = Method(
    name="rtn",
    category="quantization",
    stored_as="packed",
    config=RtnConfig,
    apply=apply,
    summary="round weights to the nearest of 2, 3, 4 or 8 bits, in groups; needs no data and takes seconds",
    paper="Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339; Yao et al. 2022, ZeroQuant, arXiv:2206.01861",
    needs=needs,
    may_follow=("pruning", "low_rank", "healing"),
)
