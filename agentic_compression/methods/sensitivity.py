"""How much a model's predictions change when one linear alone is quantized.

Measured: the Kullback-Leibler divergence of the model's next-token distribution with that linear quantized from the one
without, mean over the tokens of some calibration windows, in nats. Everything before the linear's block is computed
once.

Estimated, for models where a forward pass for every linear and width takes too long: the second-order approximation of
the same divergence, ``½ Σₒ E[gₒ²] · (ΔW G ΔWᵀ)ₒₒ``, with ``G`` the mean of ``x xᵀ`` over the linear's inputs and ``g``
the gradient of the log-probability of tokens drawn from the model's own predictions by the linear's outputs. That is
the Fisher information with inputs and output gradients taken as independent (Martens and Grosse 2015,
arXiv:1503.05671), its output side diagonal. It takes one backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from agentic_compression.errors import CompressionError
from agentic_compression.methods.block_running import padded_batches
from agentic_compression.methods.layerwise import blocks_of

__all__ = ["Divergence", "evaluation_windows", "expected_divergence", "output_gradients"]

_LOGITS = 1 << 26  # kept at once, float32: 256 MiB
_FEWEST_TOKENS, _MOST_TOKENS = 256, 4096


def evaluation_windows(windows: Sequence[torch.Tensor], vocabulary: int) -> list[torch.Tensor]:
    """Windows to judge on, evenly spaced: up to 4,096 tokens, fewer where the vocabulary is large, one at least.

    Args:
        windows: token ids ``(1, tokens)``.
        vocabulary: width of the logits.
    """
    wanted = min(_MOST_TOKENS, max(_FEWEST_TOKENS, _LOGITS // vocabulary))
    longest = max(window.shape[1] for window in windows)
    count = max(1, min(len(windows), wanted // longest))
    chosen = [windows[index * len(windows) // count] for index in range(count)]
    return [window[:, : max(wanted, 2)] for window in chosen]


class Divergence:
    """Divergence from the model as it is now when something in one block is changed.

    All windows run at once, padded on the right to one length.
    """

    @torch.no_grad()
    def __init__(self, model: Any, windows: Sequence[torch.Tensor]) -> None:
        """Compute the predictions to compare with.

        Args:
            model: a causal language model with a list of decoder blocks.
            windows: token ids ``(1, tokens)``.

        Raises:
            CompressionError: when the predictions are not finite.
        """
        self._model = model
        prefix, self._blocks = blocks_of(model)
        ids, mask = padded_batches(windows, len(windows))
        self._ids, self._mask = ids[0].to(model.device), mask[0].to(model.device)
        self._inputs: dict[int, torch.Tensor] = {}
        self._tuples: dict[int, int] = {}  # lengths of what blocks return, where that is a tuple
        with self._inputs_kept():
            self._expected = self._predictions()
        if not bool(torch.isfinite(self._expected).all()):
            bad = (index for index, x in self._inputs.items() if not bool(torch.isfinite(x[self._mask]).all()))
            index = next(bad, len(self._blocks)) - 1
            where = f"{prefix}.{index}" if index >= 0 else "the input embedding"
            raise CompressionError(
                f"the calibration text gives NaN or infinite activations at the output of {where} or after it; check "
                "the model and the stages before, or use a float32 or bfloat16 copy of a float16 model"
            )

    @torch.no_grad()
    def of_weight(self, block: int, linear: nn.Linear, weight: torch.Tensor) -> float:
        """Mean divergence in nats a token with another weight in one linear of a block; the weight is put back."""
        before = linear.weight.data
        try:
            linear.weight.data = weight.to(before.dtype)
            with self._started_at(block):
                changed = self._predictions()
        finally:
            linear.weight.data = before
        terms = (self._expected.exp() * (self._expected - changed)).sum(dim=-1)
        return max(0.0, float(terms.to(torch.float64).mean()))

    def _predictions(self) -> torch.Tensor:
        """Log-probabilities ``(text tokens, vocabulary)``."""
        logits = self._model(input_ids=self._ids, use_cache=False).logits[self._mask]
        return torch.log_softmax(logits.to(torch.float32), dim=-1)

    @contextmanager
    def _inputs_kept(self) -> Iterator[None]:
        def keep(index: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self._inputs[index] = args[0] if args else kwargs["hidden_states"]

            return hook

        def measure(index: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if isinstance(output, tuple):
                    self._tuples[index] = len(output)

            return hook

        handles = [
            block.register_forward_pre_hook(keep(index), with_kwargs=True) for index, block in enumerate(self._blocks)
        ]
        handles += [block.register_forward_hook(measure(index)) for index, block in enumerate(self._blocks)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _started_at(self, block: int) -> Iterator[None]:
        """Blocks before this one hand on what they get; this one gets its recorded input."""

        def passing(index: int) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                x = args[0] if args else kwargs["hidden_states"]
                return (x, *[None] * (self._tuples[index] - 1)) if index in self._tuples else x

            return forward

        def replaced(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._inputs[block], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._inputs[block]}

        skipped = list(self._blocks)[:block]
        before = [part.__dict__.get("forward") for part in skipped]
        handle = self._blocks[block].register_forward_pre_hook(replaced, with_kwargs=True)
        try:
            for index, part in enumerate(skipped):
                part.forward = passing(index)
            yield
        finally:
            handle.remove()
            for part, forward in zip(skipped, before, strict=True):
                del part.forward
                if forward is not None:
                    part.forward = forward


def output_gradients(
    model: Any, linears: Mapping[str, nn.Linear], windows: Sequence[torch.Tensor], seed: int
) -> dict[str, torch.Tensor]:
    """``E[g²]`` of every output of every linear, mean over tokens, for tokens drawn from the model's predictions.

    Args:
        model: a causal language model.
        linears: by name.
        windows: token ids ``(1, tokens)``; one runs at a time.
        seed: of the draw.

    Returns:
        float32 ``(out_features,)`` by name; zeros where no token came.
    """
    sums = {name: torch.zeros(linear.out_features, device=linear.weight.device) for name, linear in linears.items()}
    generator = torch.Generator(device=model.device).manual_seed(seed)
    tokens = sum(window.shape[1] for window in windows)

    def watch(name: str) -> Any:
        def add(gradient: torch.Tensor) -> None:
            squares = gradient.detach().to(torch.float32).square()
            sums[name] += squares.reshape(-1, squares.shape[-1]).sum(dim=0)

        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return hook

    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [linear.register_forward_hook(watch(name)) for name, linear in linears.items()]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            for window in windows:
                _backward(model, window.to(model.device), generator)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
    return {name: total / max(1, tokens) for name, total in sums.items()}


def _backward(model: Any, ids: torch.Tensor, generator: torch.Generator) -> None:
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded, use_cache=False).logits[0].to(torch.float32)
    with torch.no_grad():
        drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
    torch.log_softmax(logits, dim=-1).gather(1, drawn).sum().backward()


def expected_divergence(change: torch.Tensor, gram: torch.Tensor, gradients: torch.Tensor) -> float:
    """``½ Σₒ E[gₒ²] · (ΔW G ΔWᵀ)ₒₒ`` in nats a token.

    Args:
        change: ``ΔW``, float32 ``(out_features, in_features)``.
        gram: mean of ``x xᵀ`` of the inputs.
        gradients: ``E[g²]``, ``(out_features,)``.
    """
    return 0.5 * float((((change @ gram) * change).sum(dim=-1) * gradients).sum())
