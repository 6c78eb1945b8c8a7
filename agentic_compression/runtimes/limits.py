"""Refusing what does not fit, in the same words whatever the engine."""

from __future__ import annotations

from collections.abc import Sequence

from agentic_compression.errors import CompressionError, UsageError
from agentic_compression.runtimes.interface import DocumentScore, GenerationOptions, TokenPair

__all__ = ["check_answer_fits", "check_batch_fits", "check_pairs", "check_windows", "document_score"]


def check_pairs(pairs: Sequence[TokenPair], context_length: int) -> None:
    """The last token is predicted, not run, so one more than the context fits.

    Raises:
        UsageError: when a part of a pair is empty or a pair is too long.
    """
    for context, continuation in pairs:
        if not context or not continuation:
            raise UsageError(
                f"context and continuation must have a token each, got {len(context)} and {len(continuation)}; "
                "begin the context with the BOS token"
            )
        _check_length(len(context) + len(continuation) - 1, context_length, "context and continuation")


def check_windows(windows: Sequence[Sequence[int]], context_length: int) -> None:
    """Raise UsageError when a window has nothing to score or is too long."""
    for window in windows:
        if len(window) < 2:
            raise UsageError(f"a document must have two tokens or more, got {len(window)}; leave it out")
        _check_length(len(window), context_length, "a document")


def check_answer_fits(prompt: Sequence[int], options: GenerationOptions, context_length: int) -> None:
    """Raise UsageError when there is no prompt, or prompt and answer are too long."""
    if not prompt:
        raise UsageError("a prompt must have a token or more, got none; begin it with the BOS token")
    _check_length(len(prompt) + options.new_tokens, context_length, "prompt and answer")


def check_batch_fits(prompts: Sequence[Sequence[int]], new_tokens: int, context_length: int) -> None:
    """Raise UsageError when there is no prompt, they differ in length, or prompt and answer are too long."""
    lengths = sorted({len(prompt) for prompt in prompts})
    if len(lengths) != 1:
        raise UsageError(f"the prompts of a timed batch must have one length, got {lengths or 'no prompt'}; cut them")
    check_answer_fits(prompts[0], GenerationOptions(new_tokens), context_length)


def _check_length(tokens: int, context_length: int, what: str) -> None:
    if tokens > context_length:
        raise UsageError(f"{what} must fit the model's context of {context_length}, got {tokens} tokens; shorten it")


def document_score(nll: float, hits: Sequence[int]) -> DocumentScore:
    """The score of a document, refused when it is not a number.

    Raises:
        CompressionError: when the likelihood is NaN or infinite.
    """
    if not nll < float("inf"):
        raise CompressionError(
            f"the checkpoint's likelihoods must be finite, got {nll} on a document of {len(hits)} tokens; "
            "the compression broke the model: use milder parameters or another method"
        )
    return DocumentScore(nll=nll, hits=tuple(int(hit) for hit in hits))
