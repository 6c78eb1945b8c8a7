"""Mixed precision: more bits for the layers whose rounding hurts, fewer for the others, within an average.

Idea: linears differ widely in how much their quantization costs (Dong et al. 2019, HAWQ, arXiv:1905.03696). For every
linear and every width the damage is predicted (see :mod:`sensitivity`): up to 8 million weights in the decoder blocks
by quantizing that linear alone with GPTQ and measuring the divergence of the model's predictions, for larger models
from the error of rounding to nearest weighted by the inputs' second moments and the outputs' squared gradients. A
knapsack then gives every linear its width, and its group size where those are free, with the least sum of damages in
the bytes that ``target_bits`` allows, counted with scales and zero points (see :mod:`bit_allocation`). At last the
linears are quantized in order, by AutoRound's tuning or by GPTQ.

Changes: the linears of the decoder blocks become packed integers of 2, 3, 4 or 8 bits with 16-bit scales. Not covered:
embeddings, norms, activations; damages of different linears are added as if they did not act on each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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

    from agentic_compression.checkpoints.quantized import QuantizedTensor
    from agentic_compression.methods.bit_allocation import Option
    from agentic_compression.methods.layerwise import Gram
    from agentic_compression.methods.sensitivity import Divergence

    Predict = Callable[[int, str, Any, Gram, Option], float]

__all__ = ["METHOD", "MixedPrecisionConfig", "apply"]

_WIDTHS = (2, 3, 4, 8)
# Weights of the blocks' linears. The demo model's 3.3 million take about 85 s of one core; time grows with the square.
_MEASURED_UP_TO = 8_000_000
_ITERS = 50


class MixedPrecisionConfig(MethodConfig):
    """Parameters of mixed precision."""

    target_bits: Annotated[float, Range(2.25, 6.0, step=0.25)] = Field(
        default=4.0, description="average bits a weight of the blocks' linears, scales and zero points included"
    )
    group_size: Annotated[str, Choice("free", "32", "64", "128")] = Field(
        default="free", description="input weights that share a scale; free: 32, 64 or 128, chosen with the width"
    )
    rounding: Annotated[str, Choice("autoround", "gptq")] = Field(
        default="autoround", description="how the weights are rounded once widths are chosen; gptq is quicker"
    )
    sensitivity: Annotated[str, Choice("auto", "measured", "estimated")] = Field(
        default="auto", description="how damage is predicted; auto: measured up to 8 million weights, else estimated"
    )


def apply(model: Any, config: MixedPrecisionConfig, context: CompressionContext) -> Compressed:
    """Choose widths and quantize the linears of every decoder block, in place.

    Args:
        model: a causal language model with a list of decoder blocks.
        config: average bits, group sizes, rounding, how damage is predicted.
        context: calibration windows, device, seed, progress.

    Raises:
        CompressionError: when there is no calibration data, the target is below what the smallest widths take, or an
            activation is not finite.
    """
    from agentic_compression.methods.bit_allocation import allocate
    from agentic_compression.methods.block_tuning import Rounding, tune_blocks

    if not context.calibration:
        raise CompressionError("mixed_precision needs calibration text, got none; give calibration_path, or use rtn")
    options, weights = _options(model, config, context)
    budget = int(config.target_bits * weights / 8)
    least = sum(min(option.size_bytes for option in layer) for layer in options.values())
    if least > budget:
        raise CompressionError(
            f"target_bits must be at least {8 * least / weights:.3f} for this model's shapes at 2 bits with group_size "
            f"{config.group_size}, scales and zero points included, got {config.target_bits}; "
            "raise it or use larger groups"
        )
    chosen = dict(zip(options, allocate(list(options.values()), budget), strict=True))
    if config.rounding == "autoround":
        roundings = {name: Rounding(option.bits, option.group_size) for name, option in chosen.items()}
        notes = tune_blocks(model, roundings, _ITERS, context, "mixed_precision")
    else:
        notes = ()
        _quantize(model, chosen, context)
    used = 8 * sum(option.size_bytes for option in chosen.values()) / weights
    predicted = sum(option.cost for option in chosen.values())
    how = "measured" if _is_measured(config, weights) else "estimated"
    summary = f"{used:.3f} bits a weight, predicted divergence {predicted:.4g} nats a token from {how} sensitivities"
    layers = [f"{name}: {option.bits} bits, groups of {option.group_size}" for name, option in chosen.items()]
    return Compressed(model=model, notes=(summary, *layers, *notes))


def _is_measured(config: MixedPrecisionConfig, weights: int) -> bool:
    return config.sensitivity == "measured" or (config.sensitivity == "auto" and weights <= _MEASURED_UP_TO)


def _options(
    model: Any, config: MixedPrecisionConfig, context: CompressionContext
) -> tuple[dict[str, list[Option]], int]:
    """Every way to quantize every linear with its size and predicted damage, and the weights there are."""
    from agentic_compression.methods.layerwise import blocks_of, walk_blocks
    from agentic_compression.methods.linear_layers import target_linears
    from agentic_compression.methods.sensitivity import Divergence, evaluation_windows, output_gradients

    prefix, _ = blocks_of(model)
    linears = {name: linear for name, linear in target_linears(model) if name.startswith(f"{prefix}.")}
    weights = sum(linear.weight.numel() for linear in linears.values())
    vocabulary = int(getattr(model.config.get_text_config(), "vocab_size", 1 << 15))
    windows = evaluation_windows(context.calibration or (), vocabulary)
    if _is_measured(config, weights):
        predict = _measuring(Divergence(model, windows))
    else:
        predict = _estimating(output_gradients(model, linears, windows, context.seed))
    options = {}
    for block, layers in enumerate(walk_blocks(model, context, "mixed_precision sensitivity")):
        for name, linear, gram in layers:
            shapes = _shapes(linear, config)
            options[name] = [replace(shape, cost=predict(block, name, linear, gram, shape)) for shape in shapes]
    return options, weights


def _shapes(linear: Any, config: MixedPrecisionConfig) -> list[Option]:
    """Widths and group sizes to choose from, without their damage."""
    from agentic_compression.methods.bit_allocation import Option, stored_bytes
    from agentic_compression.methods.linear_layers import fitting_group_size

    rows, columns = linear.weight.shape
    asked = (32, 64, 128) if config.group_size == "free" else (int(config.group_size),)
    groups = sorted({fitting_group_size(columns, size) for size in asked})
    return [Option(bits, group, stored_bytes(rows, columns, bits, group), 0.0) for bits in _WIDTHS for group in groups]


def _measuring(divergence: Divergence) -> Predict:
    def predict(block: int, name: str, linear: Any, gram: Gram, option: Option) -> float:
        return divergence.of_weight(block, linear, _gptq(linear.weight.detach(), gram, option).dequantize())

    return predict


def _estimating(gradients: dict[str, torch.Tensor]) -> Predict:
    from agentic_compression.methods.rounding import dequantize_group, grid, round_to_grid
    from agentic_compression.methods.sensitivity import expected_divergence

    def predict(block: int, name: str, linear: Any, gram: Gram, option: Option) -> float:
        values = linear.weight.detach().float().view(linear.out_features, -1, option.group_size)
        scale, zero_point = (part[..., None] for part in grid(values, option.bits, symmetric=False))
        restored = dequantize_group(round_to_grid(values, scale, zero_point, option.bits), scale, zero_point)
        change = (restored - values).view(linear.out_features, -1)
        return expected_divergence(change, gram.matrix, gradients[name])

    return predict


def _gptq(weight: torch.Tensor, gram: Gram, option: Option) -> QuantizedTensor:
    """GPTQ with a group size that divides the width, whether or not it is one of the method's choices."""
    from agentic_compression.methods.gptq import GptqConfig, quantize_with_gram

    settings = GptqConfig(bits=option.bits).model_copy(update={"group_size": option.group_size})
    return quantize_with_gram(weight, gram.matrix, settings)


def _quantize(model: Any, chosen: dict[str, Option], context: CompressionContext) -> None:
    """GPTQ block by block, every linear with its own width."""
    from agentic_compression.checkpoints.packed_linear import PackedLinear
    from agentic_compression.methods.layerwise import walk_blocks

    waiting: list[tuple[str, Any, Any]] = []
    for layers in walk_blocks(model, context, "mixed_precision"):
        _pack(model, waiting)
        for name, linear, gram in layers:
            weight = _gptq(linear.weight.detach(), gram, chosen[name])
            linear.weight.data.copy_(weight.dequantize(linear.weight.dtype))
            waiting.append((name, linear, PackedLinear(weight, linear.bias)))
    _pack(model, waiting)


def _pack(model: Any, waiting: list[tuple[str, Any, Any]]) -> None:
    """Only after the next block's inputs were computed, with the exact dequantized weights."""
    while waiting:
        name, _, packed = waiting.pop()
        model.set_submodule(name, packed)


def _needs(workload: Workload, config: MixedPrecisionConfig) -> Needs:
    """Sensitivities, then the quantization."""
    from agentic_compression.methods.autoround import tuning_needs
    from agentic_compression.methods.calibration_cost import walking_needs

    walk = walking_needs(workload, matrices=True)
    shapes = len(_WIDTHS) * (3 if config.group_size == "free" else 1)
    rate = 2e10 * max(workload.threads, 1)
    tokens = min(4096, workload.calibration_tokens)
    seconds, extra = walk.seconds, 12 * workload.vocabulary * min(tokens, (1 << 26) // max(workload.vocabulary, 1))
    linears = 7 * workload.blocks
    if _is_measured(config, workload.linear_parameters):
        # GPTQ for every shape, and a forward pass over half of the blocks on average for every linear and shape.
        seconds += shapes * 3 * workload.linear_parameters * workload.widest_input / rate
        seconds += (
            shapes * linears * tokens * (workload.linear_parameters + 2 * workload.vocabulary * workload.hidden) / rate
        )
        seconds += 0.01 * shapes * linears
    else:
        seconds += 2 * shapes * workload.linear_parameters * workload.widest_input / rate
        extra += 4 * tokens * workload.blocks * (12 * workload.hidden + 3 * workload.widest_input)
    last = tuning_needs(workload, _ITERS) if config.rounding == "autoround" else walk
    return Needs(peak_bytes=max(walk.peak_bytes + extra, last.peak_bytes), seconds=seconds + last.seconds)


METHOD = Method(
    name="mixed_precision",
    category="quantization",
    stored_as="packed",
    config=MixedPrecisionConfig,
    apply=apply,
    summary="2, 3, 4 or 8 bits for each layer by measured sensitivity, within an average; takes minutes",
    paper="Dong et al. 2019, HAWQ, arXiv:1905.03696",
    needs_calibration=True,
    may_follow=("pruning", "low_rank", "healing"),
    needs=_needs,
)
