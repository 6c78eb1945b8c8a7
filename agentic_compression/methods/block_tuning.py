"""Tuning how a decoder block's weights are rounded, by the signs of the gradients of the block's output error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.checkpoints.quantized import QuantizedTensor
from agentic_compression.errors import CompressionError
from agentic_compression.methods.block_running import (
    Arguments,
    float32_copy,
    padded_batches,
    record_blocks,
    run_block,
)
from agentic_compression.methods.layerwise import blocks_of
from agentic_compression.methods.linear_layers import fitting_group_size
from agentic_compression.methods.rounding import smallest_scale, stored_scale_dtype

if TYPE_CHECKING:
    from agentic_compression.methods.interface import CompressionContext

__all__ = ["Rounding", "TunedRounding", "tune_block", "tune_blocks"]

_WINDOWS_A_STEP = 8
_CHECKED_BATCHES = 4
_CHECKS = 5  # of the state while it is tuned, besides the one before the first step


@dataclass(frozen=True)
class Rounding:
    """How one linear is to be rounded: bits, group size (-1 for a row), whether the grid is centred on zero."""

    bits: int
    group_size: int
    symmetric: bool = False


@dataclass(frozen=True)
class _Data:
    """Inputs and wanted outputs ``(rows, tokens, hidden)`` of a block; rows are a multiple of ``size``.

    Attributes:
        inputs: float32.
        targets: float32.
        mask: bool ``(rows, tokens)``, false where there is no text.
        windows: rows that hold text; they come first.
        size: rows at once.
        arguments: what else the block is called with.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor
    windows: int
    size: int
    arguments: Arguments


class TunedRounding:
    """One weight with what is tuned: an offset for every weight, and a factor for both ends of every group's range.

    ``W̃ = s · (clip(⌊W / s + V⌉ + z, low, high) - z)`` with ``s`` from the group's smallest weight times α and its
    largest times β (equations 2 to 4 of arXiv:2309.05516). Gradients pass rounding as if it were not there. Scales are
    bfloat16 numbers throughout, as they are stored.

    Attributes:
        offset: ``V``, ``(out_features, groups, group)``.
        low_factor: α, ``(out_features, groups)`` in [0, 1].
        high_factor: β, likewise.
        reached: whether any step had a gradient.
    """

    def __init__(self, weight: torch.Tensor, rounding: Rounding) -> None:
        """Start at rounding to nearest over the whole range.

        Args:
            weight: ``(out_features, in_features)``.
            rounding: bits, group size, symmetry.
        """
        rows, columns = weight.shape
        groups = columns // fitting_group_size(columns, rounding.group_size)
        self._rounding = rounding
        self.reached = False
        self._stored_for = weight.dtype
        self._values = weight.detach().to(torch.float32).view(rows, groups, -1)
        self._below = -self._values.amin(dim=-1).clamp(max=0)
        self._above = self._values.amax(dim=-1).clamp(min=0)
        self.offset = torch.zeros_like(self._values, requires_grad=True)
        self.low_factor = torch.ones_like(self._below, requires_grad=True)
        self.high_factor = torch.ones_like(self._above, requires_grad=True)

    @property
    def parameters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What is tuned."""
        return self.offset, self.low_factor, self.high_factor

    @torch.no_grad()
    def step(self, gradients: tuple[torch.Tensor | None, ...], rate: float) -> None:
        """Move everything by ``rate`` against the sign of its gradient, within the ranges that each has.

        None stands for the gradient of what the output does not depend on, such as an expert never chosen. An offset of
        at most one half rounds a zero to zero, so that pruned weights stay pruned.
        """
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(gradient.sign(), alpha=rate)
                self.reached = True
        self.offset.clamp_(-0.5, 0.5)
        self.low_factor.clamp_(0, 1)
        self.high_factor.clamp_(0, 1)

    @torch.no_grad()
    def state(self) -> tuple[torch.Tensor, ...]:
        """A copy of what is tuned."""
        return tuple(parameter.clone() for parameter in self.parameters)

    @torch.no_grad()
    def restore(self, state: tuple[torch.Tensor, ...]) -> None:
        """Go back to a state."""
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.copy_(value)

    def weight(self) -> torch.Tensor:
        """The rounded weight ``(out_features, in_features)``, float32, differentiable."""
        codes, scale, zero_point = self._codes()
        return ((codes - zero_point[..., None]) * scale[..., None]).view(self._values.shape[0], -1)

    @torch.no_grad()
    def quantized(self) -> QuantizedTensor:
        """The integers and scales that :meth:`weight` stands for."""
        codes, scale, zero_point = self._codes()
        return QuantizedTensor(
            codes=codes.view(self._values.shape[0], -1).to(torch.int8),
            scale=scale.to(stored_scale_dtype(self._stored_for)),
            zero_point=None if self._rounding.symmetric else zero_point.to(torch.int8),
            bits=self._rounding.bits,
        )

    def _codes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        high = 2 ** (self._rounding.bits - 1) - 1
        below, above = self._below * self.low_factor, self._above * self.high_factor
        span = 2 * torch.maximum(below, above) if self._rounding.symmetric else above + below
        scale = span / (2 * high + 1)
        scale = scale + (scale.to(torch.bfloat16).to(torch.float32) - scale).detach()
        smallest = smallest_scale(stored_scale_dtype(self._stored_for))
        scale = torch.where(scale > 0, scale.clamp(min=smallest), torch.ones_like(scale))
        zero_point = torch.zeros_like(scale)
        if not self._rounding.symmetric:
            zero_point = (_round(below / scale) - high - 1).clamp(-high - 1, high)
        steps = _round(self._values / scale[..., None] + self.offset)
        return (steps + zero_point[..., None]).clamp(-high - 1, high), scale, zero_point


def _round(x: torch.Tensor) -> torch.Tensor:
    """Round to the nearest integer; the gradient passes as if nothing had been rounded."""
    return x + (x.round() - x).detach()


def tune_blocks(
    model: Any, roundings: Mapping[str, Rounding], iters: int, context: CompressionContext, what: str
) -> tuple[str, ...]:
    """Replace linears of the decoder blocks by packed ones, block by block, each tuned for what the model did before.

    A block is tuned to turn what the quantized blocks before it make into what it made of the original blocks' output.

    Args:
        model: a causal language model with a list of decoder blocks; changed in place.
        roundings: by name of the linear; linears that are not named stay.
        iters: steps a block.
        context: calibration windows, device, seed, windows at once, progress.
        what: name to report progress under.

    Returns:
        A note for every linear that no calibration token reached.

    Raises:
        CompressionError: when there is no calibration data, no list of blocks, or an activation is not finite.
    """
    if not context.calibration:
        raise CompressionError(f"{what} needs calibration text, got none; give calibration_path, or use rtn")
    prefix, blocks = blocks_of(model)
    windows = len(context.calibration)
    size = min(_WINDOWS_A_STEP, context.batch_size, windows)
    ids, mask = padded_batches(context.calibration, size)
    hidden, arguments = record_blocks(model, blocks, ids)
    original = torch.cat(hidden)
    made = original
    mask = mask.flatten(0, 1).to(original.device)
    notes: list[str] = []
    for index, block in enumerate(blocks):
        start = f"{prefix}.{index}."
        mine = [name.removeprefix(start) for name in roundings if name.startswith(start)]
        copied = float32_copy(block)
        original = _outputs(copied, {}, original, size, arguments[index])
        _check_finite(original, mask, start.rstrip("."), what)
        data = _Data(made, original, mask, windows, size, arguments[index])
        tuned = {name: TunedRounding(block.get_submodule(name).weight, roundings[start + name]) for name in mine}

        def told(step: int, before: int = index * iters) -> None:
            context.progress(what, before + step, len(blocks) * iters)

        tune_block(copied, tuned, data, (iters, context.seed + index), told)
        weights = {f"{name}.weight": rounding.weight().detach() for name, rounding in tuned.items()}
        made = _outputs(copied, weights, made, size, arguments[index])
        for name, rounding in tuned.items():
            if iters and not rounding.reached:
                notes.append(f"{start}{name}: no calibration token reached it, rounded to nearest")
            model.set_submodule(start + name, PackedLinear(rounding.quantized(), block.get_submodule(name).bias))
    return tuple(notes)


def tune_block(
    block: nn.Module,
    tuned: Mapping[str, TunedRounding],
    data: _Data,
    steps_and_seed: tuple[int, int],
    told: Callable[[int], None],
) -> tuple[float, float]:
    """Tune a block's roundings together; the best state that was met stays, judged on the same windows every time.

    Steps shrink linearly to zero from ``1 / steps``: together they move an offset by at most about one half.

    Args:
        block: in float32.
        tuned: by name of the linear inside the block.
        data: what the block gets and should make.
        steps_and_seed: steps, and seed of the order of the windows.
        told: called with the number of steps done.

    Returns:
        Mean squared error of the output for rounding to nearest, and for the state that stayed.
    """
    iters, seed = steps_and_seed
    order = _Order(data.windows, data.size, seed)
    best = first = _error(block, tuned, data)
    kept = {name: rounding.state() for name, rounding in tuned.items()}
    for step in range(iters if tuned else 0):
        rows = order.next().to(data.mask.device)
        weights = {f"{name}.weight": rounding.weight() for name, rounding in tuned.items()}
        output = run_block(block, weights, data.inputs[rows], data.arguments)
        loss = (output - data.targets[rows])[data.mask[rows]].square().mean()
        parameters = [part for rounding in tuned.values() for part in rounding.parameters]
        gradients: tuple[torch.Tensor | None, ...] = (None,) * len(parameters)
        if loss.requires_grad:  # it does not where no linear of the block was called
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for index, rounding in enumerate(tuned.values()):
            rounding.step(gradients[3 * index : 3 * index + 3], (1 - step / iters) / iters)
        told(step + 1)
        if step + 1 == iters or (step + 1) % max(1, iters // _CHECKS) == 0:
            error = _error(block, tuned, data)
            if error < best:
                best, kept = error, {name: rounding.state() for name, rounding in tuned.items()}
    for name, rounding in tuned.items():
        rounding.restore(kept[name])
    return first, best


class _Order:
    """Batches of windows: all in a shuffled order, then in another; what is left of an order is dropped."""

    def __init__(self, windows: int, size: int, seed: int) -> None:
        self._windows, self._size = windows, size
        self._generator = torch.Generator().manual_seed(seed)
        self._left = torch.empty(0, dtype=torch.int64)

    def next(self) -> torch.Tensor:
        """Rows of the next batch."""
        if len(self._left) < self._size:
            self._left = torch.randperm(self._windows, generator=self._generator)
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return batch


@torch.no_grad()
def _error(block: nn.Module, tuned: Mapping[str, TunedRounding], data: _Data) -> float:
    """Mean squared error over the first batches."""
    weights = {f"{name}.weight": rounding.weight() for name, rounding in tuned.items()}
    total, count = 0.0, 0
    for start in range(0, min(data.windows, _CHECKED_BATCHES * data.size), data.size):
        rows = slice(start, start + data.size)
        output = run_block(block, weights, data.inputs[rows], data.arguments)
        difference = (output - data.targets[rows])[data.mask[rows]]
        total, count = total + float(difference.square().sum()), count + difference.numel()
    return total / count


@torch.no_grad()
def _outputs(
    block: nn.Module, replaced: Mapping[str, torch.Tensor], inputs: torch.Tensor, size: int, arguments: Arguments
) -> torch.Tensor:
    return torch.cat([run_block(block, replaced, batch, arguments) for batch in inputs.split(size)])


def _check_finite(output: torch.Tensor, mask: torch.Tensor, name: str, what: str) -> None:
    if not bool(torch.isfinite(output[mask]).all()):
        raise CompressionError(
            f"{what} found NaN or infinite activations at the output of {name}; check the model and the stages before, "
            "or use a float32 or bfloat16 copy of a float16 model"
        )
