"""What an engine of the server is, and the values that cross its boundary.

An engine answers many requests at once; requests join and leave between two of its steps. The one implementation that
ships, ``ProcessEngine``, runs the model in a process of its own, so that the server's event loop never waits for a
matrix product and an unloaded model gives all its memory back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agentic_compression.errors import AcfError, UnavailableError, UsageError
from agentic_compression.runtimes.select import RuntimeKind

__all__ = [
    "ENGINE_KINDS",
    "Delta",
    "Embedded",
    "Engine",
    "EngineBusyError",
    "EngineDiedError",
    "EngineInfo",
    "EngineKind",
    "EngineOptions",
    "Generation",
    "LoadMemoryError",
    "Prepared",
    "PromptError",
    "TokenInfo",
]


EngineKind = Literal["auto"] | RuntimeKind
"""``auto``: the engine that a folder's own files ask for; vLLM only when asked for by name."""
ENGINE_KINDS: tuple[EngineKind, ...] = ("auto", "transformers", "llama.cpp", "vllm")


class EngineDiedError(AcfError):
    """The engine's process ended while it had work."""


class EngineBusyError(UnavailableError):
    """No room for another request; it may be sent again later."""


class LoadMemoryError(UnavailableError):
    """The model does not fit the memory that is left or allowed."""


class PromptError(UsageError):
    """A prompt that the model cannot be given; ``code`` tells programs why."""

    def __init__(self, message: str, code: str = "invalid_prompt", param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


@dataclass(frozen=True)
class EngineOptions:
    """How a model is loaded.

    Attributes:
        slots: requests that decode at once.
        queue: requests that wait for a slot, at most.
        cache_tokens: tokens of prompts and answers held for all slots together; chosen from the context when 0.
        device: ``cpu`` or ``cuda:n``.
        threads: of a computation.
        max_new_tokens: of one answer, whatever is asked for.
        engine: which one runs the model.
        gpu_share: of the GPU's memory, all that one vLLM engine takes; without effect on other engines.
    """

    slots: int = 16
    queue: int = 256
    cache_tokens: int = 0
    device: str = "cpu"
    threads: int = 1
    max_new_tokens: int = 2048
    engine: EngineKind = "auto"
    gpu_share: float = 0.9


@dataclass(frozen=True)
class EngineInfo:
    """What was loaded: engine and version, device, tokens of context, bytes of weights, slots, template's origin."""

    engine: str
    device: str
    context_length: int
    weights_bytes: int
    slots: int
    batched: bool
    chat_template: Literal["tokenizer", "default"]
    pid: int


@dataclass(frozen=True)
class Generation:
    """One answer that is asked for.

    Attributes:
        prompt: text, or None when ``messages`` are given.
        messages: a chat, each with ``role`` and ``content``.
        new_tokens: at most so many; what the context leaves when None.
        truncate: cut a prompt that is too long instead of refusing it.
        top_logprobs: alternatives to report with every token; None reports no log-probabilities.
        schema: JSON schema that the answer must keep to, as JSON.
    """

    prompt: str | Sequence[int] | None = None
    messages: Sequence[dict[str, str]] | None = None
    new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    truncate: bool = True
    top_logprobs: int | None = None
    schema: str | None = None

    def message(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "stop": list(self.stop)}


@dataclass(frozen=True)
class Prepared:
    """The prompt was accepted: tokens it has, whether it was cut, and tokens that the answer may have."""

    prompt_tokens: int
    truncated: bool
    new_tokens: int


@dataclass(frozen=True)
class TokenInfo:
    """One generated token with its log-probability (nats) and the most likely alternatives."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """Text that became final with the last tokens; ``finish`` stands on the last one of an answer."""

    text: str
    tokens: int
    finish: Literal["stop", "length"] | None = None
    logprobs: tuple[TokenInfo, ...] = field(default=())


@dataclass(frozen=True)
class Embedded:
    """Vectors of length 1 as little-endian float32 bytes, tokens read, and whether a text was cut."""

    vectors: list[bytes]
    tokens: int
    truncated: bool


class Engine(Protocol):
    """A loaded model that answers requests submitted concurrently from one event loop."""

    def generate(self, request: Generation) -> AsyncGenerator[Prepared | Delta, None]:
        """``Prepared``, then the answer piece by piece. Closing the generator early frees the request's slot.

        Raises:
            PromptError: before anything is yielded, when the prompt cannot be used.
            EngineBusyError: before anything is yielded, when the queue is full.
            EngineDiedError: when the engine ends meanwhile.
        """
        ...

    async def embed(self, texts: Sequence[str | Sequence[int]], truncate: bool) -> Embedded:
        """A vector for each text, or list of token ids: the mean of the last hidden states, of length 1.

        Raises:
            PromptError: when a text has no tokens or ids outside the vocabulary, or is too long and may not be cut.
            EngineDiedError: when the engine ends meanwhile.
        """
        ...

    async def close(self) -> None:
        """Free the model; requests that still run fail. Closing again does nothing."""
        ...
