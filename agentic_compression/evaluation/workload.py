"""The fixed workload of latency, memory and energy: one request, batch 1, greedy, with a KV cache.

The end-of-sequence token is ignored, so every answer has its full length.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agentic_compression.errors import CompressionError, ConfigurationError
from agentic_compression.records import EvaluationSettings
from agentic_compression.runtimes import Runtime, TimedRequest

__all__ = ["Workload", "build_workload", "check_finite"]

_PROMPT_SEED = 20_240


@dataclass(frozen=True)
class Workload:
    """A prompt of fixed length and the number of tokens to answer it with."""

    prompt: tuple[int, ...]
    new_tokens: int

    def serve(self, runtime: Runtime) -> TimedRequest:
        """One request."""
        return runtime.time_request(self.prompt, self.new_tokens)


def build_workload(runtime: Runtime, settings: EvaluationSettings) -> Workload:
    """BOS, then seeded random ordinary tokens: the same prompt for every checkpoint with this vocabulary.

    Raises:
        ConfigurationError: when prompt and answer do not fit the model's context.
    """
    total, context = settings.prompt_tokens + settings.new_tokens, runtime.context_length
    if total > context:
        raise ConfigurationError(
            f"prompt_tokens + new_tokens must fit the context of {context}, got {total}; lower one of them"
        )
    special = set(runtime.tokenizer.all_special_ids)
    ordinary = [token for token in range(min(runtime.vocabulary, len(runtime.tokenizer))) if token not in special]
    drawn = random.Random(_PROMPT_SEED).choices(ordinary or [0], k=settings.prompt_tokens)  # noqa: S311
    prompt = (runtime.bos + drawn)[: settings.prompt_tokens]
    return Workload(prompt=tuple(prompt), new_tokens=settings.new_tokens)


def check_finite(runtime: Runtime, prompt: Sequence[int]) -> None:
    """Refuse a model whose logits over a prompt are not finite numbers.

    Raises:
        CompressionError: when any logit is NaN or infinite.
    """
    import numpy as np

    logits = runtime.logits(prompt, range(len(prompt)))
    bad = int((~np.isfinite(logits)).sum())
    if bad:
        raise CompressionError(
            f"the checkpoint's logits must be finite, got {bad:,} NaN or infinite values of {logits.size:,}; "
            "the compression broke the model: use milder parameters or another method"
        )
