"""Perplexity and next-token accuracy over held-out documents.

One document is one window: BOS first when the tokenizer has one, cut at the context length, every token after the
first scored. How documents are batched is the runtime's affair.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from agentic_compression.errors import DatasetError
from agentic_compression.evaluation.batching import batch_limit
from agentic_compression.evaluation.intervals import bootstrap_ratio
from agentic_compression.evaluation.items import named
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Perplexity
from agentic_compression.runtimes import DocumentScore, Runtime
from agentic_compression.storage import read_json_lines

__all__ = ["encode_documents", "perplexity_of", "read_texts", "score_documents", "within_budget"]


_MOST_NATS = 300.0  # more is as broken, and the squares of its exponential are not finite


def read_texts(path: str, *, limit: int | None = None, seed: int = 0) -> dict[str, str]:
    """Read JSONL of ``{text}`` with optional ``id``, in the order of the ids (line numbers without ids).

    An id that came before is followed by a number, so that no text replaces another.

    Args:
        path: the file.
        limit: keep only so many, the first of a seeded shuffle.
        seed: of the shuffle.

    Raises:
        DatasetError: when the file cannot be read or holds no text.
    """
    try:
        texts = _named_texts(read_json_lines(Path(path)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} must be JSONL with a 'text' field, got {type(error).__name__}: {error}") from error
    if not texts:
        raise DatasetError(f"{path} must hold at least one text, got none")
    names = sorted(texts)
    if limit is not None and limit < len(names):
        random.Random(seed).shuffle(names)  # noqa: S311
        names = sorted(names[:limit])
    return {name: texts[name] for name in names}


def encode_documents(runtime: Runtime, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each document: BOS when there is one, the text, cut at the context length.

    Documents with nothing to score (fewer than two tokens) are left out.
    """
    encoded = runtime.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    windows = [(runtime.bos + list(ids))[: runtime.context_length] for ids in encoded]
    return [window for window in windows if len(window) > 1]


def within_budget(windows: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """Whole documents in the given order until ``tokens`` scored tokens are reached, at least one document."""
    chosen: list[list[int]] = []
    total = 0
    for window in windows:
        if total >= tokens:
            break
        chosen.append(window)
        total += len(window) - 1
    return chosen


def score_documents(
    runtime: Runtime, windows: Sequence[list[int]], batch_size: int, progress: Progress = no_progress
) -> list[DocumentScore]:
    """Score every window, in the given order.

    Args:
        runtime: the checkpoint.
        windows: token ids, two or more each.
        batch_size: windows at once; fewer when they are long or memory has run out.
        progress: told after every batch.

    Raises:
        CompressionError: when a likelihood is not a finite number.
    """
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress("perplexity", done, len(windows))

    work = partial(runtime.score_documents, windows)
    return batch_limit(runtime).run(batch_size, work, report)


def perplexity_of(scores: Sequence[DocumentScore], seed: int) -> Perplexity:
    """``exp`` of the mean negative log-likelihood a token, at most ``e^300``, the interval by resampling documents."""
    import numpy as np

    tokens = [len(score.hits) for score in scores]
    return Perplexity(
        perplexity=bootstrap_ratio(
            [score.nll for score in scores], tokens, seed, lambda nll: np.exp(np.minimum(nll, _MOST_NATS))
        ),
        tokens=sum(tokens),
        documents=len(scores),
        top1_accuracy=bootstrap_ratio([sum(score.hits) for score in scores], tokens, seed),
    )


def _named_texts(rows: Sequence[Any]) -> dict[str, str]:
    documents = []
    for number, row in enumerate(rows):
        text, own = row["text"], row.get("id")
        if not isinstance(text, str):
            raise TypeError(f"the text of row {number + 1} must be a string, got {type(text).__name__}")
        documents.append({"id": f"{number:08d}" if own is None else own, "text": text})
    return {item.id: item.document["text"] for item in named(documents)}
