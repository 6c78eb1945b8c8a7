"""Scales of a linear's inputs that the operation before it can take over exactly.

``W x = (W diag(s)) (diag(1/s) x)``, and where ``x`` is made by a norm or another linear, ``diag(1/s)`` can become part
of that operation's own weights. Which operation that is follows from the block itself: the module whose output is the
linear's very input (a norm before queries, keys and values, or before gate and up), or an earlier linear of fitting
width (values before the output projection, up before down). Whether a pair is exact is not taken from its names but
tried: random scales are folded, and the block's output must stay the same. That covers ``w`` and Gemma's ``1 + w``
norms, biases, a ReLU between two linears, grouped-query attention (heads that share a value head share its scales), and
rules out everything else, such as a router or a residual connection that reads the same norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from agentic_compression.methods.block_running import Arguments, float32_copy, record_blocks, run_block
from agentic_compression.methods.layerwise import blocks_of

__all__ = ["Fold", "find_folds", "folded_producer"]

_PROBE_TOKENS = 32
_TOLERANCE = 1e-3
_ROUNDING = 1e-6  # of a float32 residual stream, where a token's is so large that what the block adds drowns in it


@dataclass(frozen=True)
class Fold:
    """One place for scales in a block.

    Attributes:
        producer: name of the module that takes the inverse scales.
        form: what of it is divided: ``weight`` of a norm, ``one_plus_weight`` of a norm that multiplies by ``1 + w``,
            or ``rows`` of a linear; its bias always is.
        consumers: names of the linears whose input columns are multiplied; all that read this input.
        source: which output of the producer an input of the consumers comes from, ``(in_features,)``; several when
            heads share one.
    """

    producer: str
    form: str
    consumers: tuple[str, ...]
    source: torch.Tensor


def find_folds(model: Any, window: torch.Tensor, names: Sequence[str]) -> list[list[Fold]]:
    """The folds of every block, in the order of the forward pass.

    Args:
        model: a causal language model.
        window: token ids ``(1, tokens)`` to try folds on; the first 32 are used.
        names: of the linears whose inputs may be scaled.
    """
    prefix, blocks = blocks_of(model)
    hidden, arguments = record_blocks(model, blocks, window[None, :, :_PROBE_TOKENS])
    head_dim = _head_dim(model.config.get_text_config())
    x, found = hidden[0], []
    for index, block in enumerate(blocks):
        start = f"{prefix}.{index}."
        mine = [name.removeprefix(start) for name in names if name.startswith(start)]
        probe = _Probe(block, mine, head_dim)
        x = probe.run(x, arguments[index])
        found.append([_renamed(fold, start) for fold in probe.folds()])
    return found


def folded_producer(
    fold: Fold, weight: torch.Tensor, bias: torch.Tensor | None, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """The producer's weight and bias with the inverse scales in them, in the dtype they are stored in.

    A norm's weights are rounded to that dtype first, and the scales returned are the exact quotients of the weights
    before and after: what the consumers are multiplied with undoes the rounding too.

    Args:
        fold: the place.
        weight: of the producer.
        bias: of the producer.
        scales: float32, one an output of the producer, positive.

    Returns:
        weight, bias, and the scales that the weight was divided by exactly.
    """
    old = weight.to(torch.float32)
    if fold.form == "rows":
        made = (old / scales[:, None]).to(weight.dtype)
    else:
        plus = 1 if fold.form == "one_plus_weight" else 0
        made = ((old + plus) / scales - plus).to(weight.dtype)
        before, after = old + plus, made.to(torch.float32) + plus
        kept = (before == 0) | (after == 0)
        made = torch.where(kept, weight, made)
        scales = torch.where(kept, torch.ones_like(scales), before / torch.where(kept, torch.ones_like(after), after))
    return made, None if bias is None else (bias.to(torch.float32) / scales).to(bias.dtype), scales


def _head_dim(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", 0)
    return int(getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0))


def _renamed(fold: Fold, start: str) -> Fold:
    return Fold(start + fold.producer, fold.form, tuple(start + name for name in fold.consumers), fold.source)


class _Probe:
    """One block in float32: what reads what, and whether a fold leaves its output as it was."""

    def __init__(self, block: nn.Module, names: Sequence[str], head_dim: int) -> None:
        self._block = float32_copy(block)
        self._names = names
        self._head_dim = head_dim
        self._generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def run(self, x: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        """Run the block once and note which tensor every module reads and makes."""
        self._x, self._arguments = x, arguments
        self._read: dict[str, torch.Tensor] = {}
        self._made: dict[str, torch.Tensor] = {}

        def hook(name: str) -> Any:
            def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if args and isinstance(output, torch.Tensor):
                    self._read[name], self._made[name] = args[0], output

            return note

        handles = [module.register_forward_hook(hook(name)) for name, module in self._block.named_modules() if name]
        try:
            self._output = run_block(self._block, {}, x, arguments)
        finally:
            for handle in handles:
                handle.remove()
        return self._output

    @torch.no_grad()
    def folds(self) -> list[Fold]:
        """What can be folded."""
        groups: dict[int, list[str]] = {}
        for name in self._read:  # in the order of the calls
            if name in self._names:
                groups.setdefault(id(self._read[name]), []).append(name)
        found = (self._fold_of(tuple(group)) for group in groups.values())
        return [fold for fold in found if fold is not None]

    def _fold_of(self, consumers: tuple[str, ...]) -> Fold | None:
        read = self._read[consumers[0]]
        width = self._block.get_submodule(consumers[0]).in_features
        for name in self._made:
            if name == consumers[0]:
                return None
            module = self._block.get_submodule(name)
            weight = getattr(module, "weight", None)
            if not isinstance(weight, torch.Tensor) or not isinstance(width, int):
                continue
            source: torch.Tensor | None = torch.arange(width)
            forms: tuple[str, ...] = ()
            if type(module) is nn.Linear:
                source, forms = self._source(module.out_features, width), ("rows",)
            elif weight.shape == (width,) and self._made[name] is read:
                forms = ("weight", "one_plus_weight")
            if source is None:
                continue
            for form in forms:
                fold = Fold(name, form, consumers, source)
                if self._is_exact(fold):
                    return fold
        return None

    def _source(self, outputs: int, inputs: int) -> torch.Tensor | None:
        """Output that an input comes from, when heads are repeated as grouped-query attention does."""
        if outputs == inputs:
            return torch.arange(inputs)
        if not self._head_dim or outputs % self._head_dim or inputs % outputs:
            return None
        channel = torch.arange(inputs)
        head = channel // self._head_dim // (inputs // outputs)
        return head * self._head_dim + channel % self._head_dim

    def _is_exact(self, fold: Fold) -> bool:
        producer = self._block.get_submodule(fold.producer)
        outputs = int(fold.source.max()) + 1
        scales = 2.0 ** torch.randint(-1, 2, (outputs,), generator=self._generator)
        weight, bias, scales = folded_producer(fold, producer.weight, getattr(producer, "bias", None), scales)
        replaced: dict[str, torch.Tensor] = {f"{fold.producer}.weight": weight}
        if bias is not None:
            replaced[f"{fold.producer}.bias"] = bias
        for name in fold.consumers:
            replaced[f"{name}.weight"] = self._block.get_submodule(name).weight * scales[fold.source]
        return self._unchanged(replaced)

    def _unchanged(self, replaced: Mapping[str, torch.Tensor]) -> bool:
        changed = run_block(self._block, replaced, self._x, self._arguments)
        error = (changed - self._output).norm(dim=-1)
        size = (self._output - self._x).norm(dim=-1)  # what the block adds; the residual stream may be far larger
        finite = torch.isfinite(self._output).all(dim=-1)
        allowed = _TOLERANCE * size + _ROUNDING * self._output.norm(dim=-1)
        return bool(finite.any()) and bool((error <= allowed)[finite].all())
