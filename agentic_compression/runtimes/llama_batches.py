"""Batches for llama.cpp: sequences laid one after another, cut into calls, their logits scored call by call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from agentic_compression.checkpoints.llama_library import LlamaContext

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Run", "all_logits", "filled", "last_logits", "log_softmax", "run_tokens", "score_runs"]

Item = TypeVar("Item")
Run = tuple[int, int, Sequence[int]]
"""Sequence, position of its first token, and token ids, all but the last of which are run."""


def filled(items: Sequence[Item], sizes: Sequence[int], most: int, tokens: int) -> Iterator[list[Item]]:
    """Split items, in their order, into batches of at most ``most`` items and ``tokens`` tokens, at least one item."""
    batch: list[Item] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and (len(batch) == most or total + size > tokens):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def run_tokens(
    context: LlamaContext,
    tokens: NDArray[np.int32],
    positions: NDArray[np.int32],
    sequences: NDArray[np.int32],
    wanted: NDArray[np.bool_],
) -> Iterator[NDArray[np.float32]]:
    """Run tokens in calls of the context's batch size; the wanted logits of each call, ``(wanted, vocabulary)``."""
    size = context.options.batch
    for start in range(0, len(tokens), size):
        part = slice(start, start + size)
        yield context.decode(tokens[part], positions[part], sequences[part], wanted[part])


def last_logits(context: LlamaContext, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Run each prompt as the sequence of its row; logits after its last token, ``(prompts, vocabulary)``."""
    tokens, positions, sequences = _concatenated([(row, 0, prompt) for row, prompt in enumerate(prompts)])
    wanted = np.zeros(len(tokens), dtype=bool)
    wanted[np.cumsum([len(prompt) for prompt in prompts]) - 1] = True
    blocks = list(run_tokens(context, tokens, positions, sequences, wanted))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def all_logits(context: LlamaContext, windows: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """Run each window as the sequence of its row; logits after every token, ``(tokens, vocabulary)`` a window."""
    tokens, positions, sequences = _concatenated([(row, 0, window) for row, window in enumerate(windows)])
    blocks = list(run_tokens(context, tokens, positions, sequences, np.ones(len(tokens), dtype=bool)))
    whole = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return np.split(whole, np.cumsum([len(window) for window in windows])[:-1])


def score_runs(context: LlamaContext, runs: Sequence[Run]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Negative log-likelihood of every token after the first of each run, and whether it was the most likely one.

    Returns:
        Both ``(tokens scored,)``, the runs one after another.
    """
    shortened = [(sequence, start, ids[:-1]) for sequence, start, ids in runs]
    tokens, positions, sequences = _concatenated(shortened)
    targets = np.concatenate([np.asarray(ids[1:], dtype=np.int64) for _, _, ids in runs] or [np.empty(0, np.int64)])
    nll, hits = np.empty(len(tokens), dtype=np.float64), np.empty(len(tokens), dtype=bool)
    start = 0
    for logits in run_tokens(context, tokens, positions, sequences, np.ones(len(tokens), dtype=bool)):
        part = slice(start, start + len(logits))
        rows = np.arange(len(logits))
        nll[part] = -log_softmax(logits)[rows, targets[part]]
        hits[part] = logits.argmax(axis=1) == targets[part]
        start += len(logits)
    return nll, hits


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Along the vocabulary, the sum in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return shifted - np.log(total).astype(np.float32)


def _concatenated(runs: Sequence[Run]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Tokens, positions and sequences of runs laid one after another."""
    if not runs:
        empty = np.empty(0, dtype=np.int32)
        return empty, empty, empty
    tokens = np.concatenate([np.asarray(ids, dtype=np.int32) for _, _, ids in runs])
    positions = np.concatenate([np.arange(start, start + len(ids), dtype=np.int32) for _, start, ids in runs])
    sequences = np.concatenate([np.full(len(ids), sequence, dtype=np.int32) for sequence, _, ids in runs])
    return tokens, positions, sequences
