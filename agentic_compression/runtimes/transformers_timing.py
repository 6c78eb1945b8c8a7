"""Greedy requests through a transformers model with a clock reading after every token."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["Clock", "clock_of", "serve_greedy"]


class Clock(Protocol):
    """Takes moments, and tells the time between two of them once ``settle`` was called."""

    def mark(self) -> Any:
        """This moment of the device's own time line."""
        ...

    def settle(self) -> None:
        """Wait until every marked moment has come."""
        ...

    def milliseconds(self, first: Any, second: Any) -> float:
        """Between two moments."""
        ...


def clock_of(device: str) -> Clock:
    """CUDA events for a GPU, ``time.perf_counter`` for the rest."""
    return _CudaClock(device) if device.startswith("cuda") else _WallClock()


def serve_greedy(
    model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, options: dict[str, Any], clock: Clock
) -> tuple[list[list[int]], list[float]]:
    """Prefill, then one token a step for all rows, past every end-of-sequence token.

    Args:
        model: a causal language model.
        prompts: of one length, ``(rows, tokens)``.
        new_tokens: of every row.
        options: further arguments of the model's forward pass.
        clock: of the model's device.

    Returns:
        The rows' answers, ``(rows, new_tokens)``, and milliseconds from the start to each token, ``(new_tokens,)``.
    """
    import torch

    mark: Callable[[], Any] = clock.mark
    with torch.inference_mode():
        ids = torch.tensor([list(prompt) for prompt in prompts], dtype=torch.long, device=model.device)
        moments = [mark()]
        output = model(input_ids=ids, use_cache=True, **options)
        token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        moments.append(mark())
        tokens = [token]
        for _ in range(new_tokens - 1):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True, **options)
            token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            moments.append(mark())
            tokens.append(token)
        clock.settle()
        answers: list[list[int]] = torch.cat(tokens, dim=1).tolist()
    return answers, [clock.milliseconds(moments[0], moment) for moment in moments[1:]]


class _WallClock:
    """``time.perf_counter``, for work that is done when the call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def settle(self) -> None:
        return None

    def milliseconds(self, first: float, second: float) -> float:
        return (second - first) * 1e3


class _CudaClock:
    """CUDA events: moments on the GPU's own time line, without stopping it."""

    def __init__(self, device: str) -> None:
        self._device = device

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        import torch

        torch.cuda.synchronize(self._device)

    def milliseconds(self, first: Any, second: Any) -> float:
        return float(first.elapsed_time(second))
