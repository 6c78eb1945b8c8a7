"""What MLflow loads a registered version with: ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` come here.

The model runs in the engine that its files ask for, as it was measured: greedy unless a temperature is asked for.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import UsageError
from agentic_compression.registry.mlflow_model import NEW_TOKENS, checkpoint_of

if TYPE_CHECKING:
    from agentic_compression.runtimes import Runtime

__all__ = ["CheckpointModel"]

_BATCH = 8


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> CheckpointModel:
    """MLflow's entry point.

    Args:
        path: the checkpoint folder.
        model_config: ``device`` (``cpu`` unless given) and ``threads`` (all usable cores but one).
    """
    from agentic_compression.runtimes import open_runtime

    config = model_config or {}
    threads = int(config.get("threads") or max(1, len(os.sched_getaffinity(0)) - 1))
    return CheckpointModel(open_runtime(checkpoint_of(Path(path)), str(config.get("device", "cpu")), threads))


class CheckpointModel:
    """Continues prompts."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()  # a runtime serves one thread; MLflow's server has several

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[str]:
        """The continuation of every prompt, without the prompt.

        Args:
            model_input: prompts: a list, a series, or a table of one column.
            params: ``max_new_tokens``, ``temperature``, ``seed``. An answer also ends where the context does.

        Raises:
            UsageError: when the input is no list of texts, or a prompt leaves no room for an answer.
        """
        from agentic_compression.runtimes import GenerationOptions

        wanted = params or {}
        most = int(wanted.get("max_new_tokens", NEW_TOKENS))
        if most < 1:
            raise UsageError(f"max_new_tokens must be 1 or more, got {most}")
        texts = _texts(model_input)
        prompts = [self._encoded(text) for text in texts]
        room = [min(most, self._runtime.context_length - len(prompt)) for prompt in prompts]
        answers: dict[int, str] = {}
        with self._lock:
            for tokens in sorted(set(room)):
                places = [place for place, size in enumerate(room) if size == tokens]
                options = GenerationOptions(
                    new_tokens=tokens,
                    temperature=float(wanted.get("temperature", 0.0)),
                    seed=int(wanted.get("seed", 0)),
                )
                batch = self._runtime.generate([prompts[place] for place in places], options, _BATCH)
                answers.update(zip(places, (answer.text for answer in batch), strict=True))
        return [answers[place] for place in range(len(texts))]

    def _encoded(self, text: str) -> list[int]:
        prompt: list[int] = self._runtime.tokenizer(text, verbose=False)["input_ids"]
        if not prompt or len(prompt) >= self._runtime.context_length:
            most = self._runtime.context_length - 1
            raise UsageError(f"a prompt must have 1 to {most} tokens, got {len(prompt)}; shorten it")
        return prompt


def _texts(model_input: Any) -> list[str]:
    """The prompts of whatever MLflow hands over."""
    if hasattr(model_input, "columns"):  # a pandas table
        if len(model_input.columns) != 1:
            raise UsageError(f"prompts must be one column, got {[str(name) for name in model_input.columns]}")
        model_input = model_input.iloc[:, 0]
    if isinstance(model_input, str):
        model_input = [model_input]
    values: Sequence[Any] = model_input.tolist() if hasattr(model_input, "tolist") else list(model_input)
    if wrong := next((value for value in values if not isinstance(value, str)), None):
        raise UsageError(f"prompts must be texts, got {type(wrong).__name__}")
    return [str(value) for value in values]
