"""The fixed workload of latency, memory and energy: one request, batch 1, greedy, with a KV cache."""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agentic_compression.errors import CompressionError, ConfigurationError
from agentic_compression.evaluation.loading import LoadedModel
from agentic_compression.records import EvaluationSettings

__all__ = ["Answer", "CudaClock", "Server", "WallClock", "Workload", "build_workload", "check_finite", "make_clock"]

_PROMPT_SEED = 20_240


@dataclass(frozen=True)
class Workload:
    """A prompt of fixed length and the number of tokens to answer it with."""

    prompt: tuple[int, ...]
    new_tokens: int


@dataclass(frozen=True)
class Answer:
    """One served request: the ``new_tokens`` ids, and the marks start, first token, end."""

    tokens: list[int]
    marks: tuple[Any, Any, Any]


def build_workload(loaded: LoadedModel, settings: EvaluationSettings) -> Workload:
    """BOS, then seeded random ordinary tokens: the same prompt for every checkpoint with this vocabulary.

    Raises:
        ConfigurationError: when prompt and answer do not fit the model's context.
    """
    total, context = settings.prompt_tokens + settings.new_tokens, loaded.context_length
    if total > context:
        raise ConfigurationError(
            f"prompt_tokens + new_tokens must fit the context of {context}, got {total}; lower one of them"
        )
    special = set(loaded.tokenizer.all_special_ids)
    ordinary = [token for token in range(min(loaded.vocabulary, len(loaded.tokenizer))) if token not in special]
    drawn = random.Random(_PROMPT_SEED).choices(ordinary or [0], k=settings.prompt_tokens)  # noqa: S311
    prompt = (loaded.bos + drawn)[: settings.prompt_tokens]
    return Workload(prompt=tuple(prompt), new_tokens=settings.new_tokens)


class Clock(Protocol):
    """Marks moments and tells the milliseconds between them."""

    name: Literal["perf_counter", "cuda_events"]

    def mark(self) -> Any: ...

    def settle(self) -> None:
        """Wait until every mark has happened."""
        ...

    def milliseconds(self, first: Any, second: Any) -> float: ...


class WallClock:
    """``time.perf_counter``, for work that is done when the call returns."""

    name: Literal["perf_counter", "cuda_events"] = "perf_counter"

    def mark(self) -> float:
        """Now, in seconds."""
        return time.perf_counter()

    def settle(self) -> None:
        """Nothing to wait for."""

    def milliseconds(self, first: float, second: float) -> float:
        """Milliseconds between two marks."""
        return (second - first) * 1e3


class CudaClock:
    """CUDA events: moments on the GPU's own time line, without stopping it."""

    name: Literal["perf_counter", "cuda_events"] = "cuda_events"

    def __init__(self, device: str) -> None:
        self._device = device

    def mark(self) -> Any:
        """An event recorded on the current stream."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def settle(self) -> None:
        """Wait for the device."""
        import torch

        torch.cuda.synchronize(self._device)

    def milliseconds(self, first: Any, second: Any) -> float:
        """Milliseconds between two settled events."""
        return float(first.elapsed_time(second))


def make_clock(device: str) -> WallClock | CudaClock:
    """CUDA events on a GPU, the wall clock elsewhere."""
    return CudaClock(device) if device.startswith("cuda") else WallClock()


class Server:
    """Serves the workload on one model; the end-of-sequence token is ignored, so every answer has its full length."""

    def __init__(self, model: Any, workload: Workload, clock: Clock) -> None:
        import torch

        self._model, self._clock, self._workload = model, clock, workload
        self._prompt = torch.tensor([workload.prompt], dtype=torch.long, device=model.device)
        # Logits of the last position are all that greedy decoding needs; every current decoder accepts the limit.
        accepted = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def serve(self) -> Answer:
        """Prefill the prompt, then decode one token after another. Call inside ``torch.inference_mode()``."""
        import torch

        model, limit = self._model, self._last_only
        start = self._clock.mark()
        output = model(input_ids=self._prompt, use_cache=True, **limit)
        token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        first = self._clock.mark()
        tokens = [token]
        for _ in range(self._workload.new_tokens - 1):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True, **limit)
            token = output.logits[:, -1].argmax(dim=-1, keepdim=True)
            tokens.append(token)
        end = self._clock.mark()
        self._clock.settle()
        return Answer(tokens=torch.cat(tokens, dim=1)[0].tolist(), marks=(start, first, end))


def check_finite(loaded: LoadedModel, prompt: Sequence[int]) -> None:
    """Refuse a model whose logits over a prompt are not finite numbers.

    Raises:
        CompressionError: when any logit is NaN or infinite.
    """
    import torch

    with torch.inference_mode():
        logits = loaded.model(input_ids=torch.tensor([list(prompt)], device=loaded.model.device)).logits
        bad = int((~torch.isfinite(logits)).sum())
    if bad:
        raise CompressionError(
            f"the checkpoint's logits must be finite, got {bad:,} NaN or infinite values of {logits.numel():,}; "
            "the compression broke the model: use milder parameters or another method"
        )
