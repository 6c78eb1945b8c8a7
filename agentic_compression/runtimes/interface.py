"""The Protocol that evaluation, serving and chat run a checkpoint through, and the values that cross it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Completion",
    "DocumentScore",
    "GenerationOptions",
    "MemoryUse",
    "Piece",
    "Report",
    "Runtime",
    "TimedBatch",
    "TimedRequest",
    "TokenCost",
    "TokenPair",
    "ignore",
]

TokenPair = tuple[Sequence[int], Sequence[int]]
"""Context and continuation, one or more token ids each."""
Report = Callable[[int], None]
"""Told how many items were done since the last call."""


def ignore(_: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class DocumentScore:
    """Sum of negative log-likelihoods (nats) and, token by token, whether the top prediction was right."""

    nll: float
    hits: tuple[int, ...]


@dataclass(frozen=True)
class GenerationOptions:
    """How an answer is generated.

    Attributes:
        new_tokens: at most so many.
        stop_strings: the answer ends before the first of them.
        stop_ids: the answer ends before the first of them, besides the model's own end-of-sequence tokens.
        temperature: 0 takes the most likely token; otherwise logits are divided by it and a token is drawn.
        top_p: draw from the smallest set of tokens that has at least this probability.
        seed: of the draw.
    """

    new_tokens: int
    stop_strings: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """An answer: its token ids without the end-of-sequence token, and its text up to the first stop string."""

    ids: list[int]
    text: str


@dataclass(frozen=True)
class Piece:
    """One generated token and the text that became final with it: text that may still grow into a stop string or a
    character of several tokens is held back. ``finish`` says, on the last piece, why the answer ended.
    """

    token: int
    text: str
    finish: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class TimedRequest:
    """One served request: ids of the answer, milliseconds to its first token and to its last, and to each of them."""

    tokens: list[int]
    first_token_ms: float
    request_ms: float
    token_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class TimedBatch:
    """Requests served at once: ids of the answers, milliseconds until all have their first token and their last."""

    tokens: list[list[int]]
    prefill_ms: float
    request_ms: float


@dataclass(frozen=True)
class TokenCost:
    """What decoding one token costs, attention and its cache apart.

    Attributes:
        bytes_read: of all weights but tables of embeddings, of which one row is read.
        flops: two for every weight of every matrix that a token meets.
        head_flops: those of the output matrix, which a prefill computes for its last token alone.
        dtype: what the engine multiplies in, or float32 where it multiplies integers.
    """

    bytes_read: int
    flops: int
    head_flops: int
    dtype: str

    def prefill_flops(self, tokens: int) -> int:
        """Of a prompt of so many tokens."""
        return (self.flops - self.head_flops) * tokens + self.head_flops


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of weights as loaded; the accelerator's peak above what it held before loading, None on a CPU; bytes of
    keys and values of one more token, None where the architecture keeps something else.
    """

    weights_bytes: int
    device_peak_bytes: int | None = None
    cache_bytes_per_token: int | None = None


class Runtime(Protocol):
    """A checkpoint that runs. Not for use from several threads at once."""

    name: str
    """``transformers``, ``llama.cpp`` or ``vllm``."""
    device: str
    """``cpu`` or ``cuda:n``."""
    clock: Literal["perf_counter", "cuda_events"]
    """What times requests."""
    tokenizer: Any
    """The folder's Hugging Face tokenizer, whatever the engine: every runtime sees the same ids."""
    vocabulary: int
    """Width of the logits."""
    context_length: int
    """Longest sequence the positions allow."""
    bos: list[int]
    """What every text begins with: the tokenizer's BOS, or nothing."""
    weights_bytes: int
    """Bytes of the weights as loaded."""

    def score(self, pairs: Sequence[TokenPair], batch_size: int, report: Report = ignore) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of every continuation and whether greedy decoding would produce it.

        Args:
            pairs: equal contexts run once; the last token of a continuation is only predicted, so that context and
                continuation together may be one token longer than the model's context.
            batch_size: continuations at once, at most.
            report: told after every batch.

        Raises:
            UsageError: when a pair is longer than the model's context.
        """
        ...

    def score_documents(
        self, windows: Sequence[Sequence[int]], batch_size: int, report: Report = ignore
    ) -> list[DocumentScore]:
        """Score every token of every window after its first; windows have two or more.

        Raises:
            UsageError: when a window is longer than the model's context.
            CompressionError: when a likelihood is not a finite number.
        """
        ...

    def generate(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions, batch_size: int, report: Report = ignore
    ) -> list[Completion]:
        """Answer every prompt; many at once.

        Raises:
            UsageError: when prompt and answer do not fit the model's context.
        """
        ...

    def stream(self, prompt: Sequence[int], options: GenerationOptions) -> Iterator[Piece]:
        """Answer one prompt, token by token.

        Raises:
            UsageError: when prompt and answer do not fit the model's context.
        """
        ...

    def time_request(self, prompt: Sequence[int], new_tokens: int) -> TimedRequest:
        """Serve one greedy request that ends at ``new_tokens`` and nowhere before: prefill, then token by token."""
        ...

    def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedBatch:
        """Serve several greedy requests at once, each as ``time_request`` does.

        Args:
            prompts: all of one length, one or more.
            new_tokens: of every answer.

        Raises:
            UsageError: when lengths differ, or prompt and answer do not fit the model's context.
            MemoryError: (``torch.OutOfMemoryError`` on a GPU) when so many do not fit the memory.
        """
        ...

    def cache_bytes(self, tokens: int) -> int | None:
        """Bytes of keys and values that the engine holds for a request of so many tokens, its answer included.

        The answer's last token is never run. None where the architecture keeps something else.
        """
        ...

    def token_cost(self) -> TokenCost:
        """What one token costs, counted from the weights as they are stored."""
        ...

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Next-token logits after the tokens at ``positions`` (ascending), ``(positions, vocabulary)``.

        They are defined up to a constant a row: an engine that knows only log-probabilities gives those.
        """
        ...

    def sequence_logits(
        self, windows: Sequence[Sequence[int]], batch_size: int
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each window's place and the logits after every one of its tokens, ``(tokens, vocabulary)``.

        As ``logits`` gives them; windows of two tokens or more, many at once, in whatever order is quickest.

        Raises:
            UsageError: when a window is longer than the model's context.
        """
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean of the last hidden states of each text, of length 1: ``(texts, hidden)``.

        Texts are tokenized as the tokenizer does by default and cut at the model's context.

        Raises:
            UsageError: when a text has no tokens.
        """
        ...

    def memory(self) -> MemoryUse:
        """What the runtime holds."""
        ...

    def close(self) -> None:
        """Free model and cache; calling it again does nothing."""
        ...
