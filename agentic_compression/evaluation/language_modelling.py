"""Perplexity and next-token accuracy over held-out documents.

One document is one window: BOS first when the tokenizer has one, cut at the context length, every token after the
first scored. Documents are batched by length and padded on the right: under causal attention a token never sees
what follows it, so the padding needs no mask, it is only left out of the sums.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.errors import CompressionError, DatasetError
from agentic_compression.evaluation.intervals import bootstrap_ratio
from agentic_compression.evaluation.loading import LoadedModel
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Perplexity
from agentic_compression.storage import read_json_lines

__all__ = ["DocumentScore", "encode_documents", "perplexity_of", "read_texts", "score_documents", "within_budget"]

_LOGIT_BYTES = 1 << 28
_BATCH_TOKENS = 2048  # larger batches spend their time fetching fresh pages for the logits


@dataclass(frozen=True)
class DocumentScore:
    """Sum of negative log-likelihoods (nats) and, token by token, whether the top prediction was right."""

    nll: float
    hits: tuple[int, ...]


def read_texts(path: str, *, limit: int | None = None, seed: int = 0) -> dict[str, str]:
    """Read JSONL of ``{text}`` with optional ``id``, in the order of the ids (line numbers without ids).

    Args:
        path: the file.
        limit: keep only so many, the first of a seeded shuffle.
        seed: of the shuffle.

    Raises:
        DatasetError: when the file cannot be read or holds no text.
    """
    try:
        rows = read_json_lines(Path(path))
        texts = {str(row.get("id", f"{number:08d}")): str(row["text"]) for number, row in enumerate(rows)}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} must be JSONL with a 'text' field, got {type(error).__name__}: {error}") from error
    if not texts:
        raise DatasetError(f"{path} must hold at least one text, got none")
    names = sorted(texts)
    if limit is not None and limit < len(names):
        random.Random(seed).shuffle(names)  # noqa: S311
        names = sorted(names[:limit])
    return {name: texts[name] for name in names}


def encode_documents(loaded: LoadedModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each document: BOS when there is one, the text, cut at the context length.

    Documents with nothing to score (fewer than two tokens) are left out.
    """
    encoded = loaded.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    windows = [(loaded.bos + list(ids))[: loaded.context_length] for ids in encoded]
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
    loaded: LoadedModel, windows: Sequence[list[int]], batch_size: int, progress: Progress = no_progress
) -> list[DocumentScore]:
    """Score every window, in the given order.

    Args:
        loaded: the model.
        windows: token ids, two or more each.
        batch_size: windows at once; fewer when they are long.
        progress: told after every batch.

    Raises:
        CompressionError: when a likelihood is not a finite number.
    """
    order = sorted(range(len(windows)), key=lambda index: (-len(windows[index]), index))
    scores: dict[int, DocumentScore] = {}
    position = 0
    while position < len(order):
        longest = len(windows[order[position]])
        rows = max(1, min(batch_size, _BATCH_TOKENS // longest, _LOGIT_BYTES // (4 * longest * loaded.vocabulary)))
        batch = order[position : position + rows]
        scores.update(zip(batch, _score_batch(loaded.model, [windows[index] for index in batch]), strict=True))
        position += len(batch)
        progress("perplexity", position, len(order))
    return [scores[index] for index in range(len(windows))]


def perplexity_of(scores: Sequence[DocumentScore], seed: int) -> Perplexity:
    """``exp`` of the mean negative log-likelihood a token, the interval by resampling documents."""
    import numpy as np

    tokens = [len(score.hits) for score in scores]
    return Perplexity(
        perplexity=bootstrap_ratio([score.nll for score in scores], tokens, seed, np.exp),
        tokens=sum(tokens),
        documents=len(scores),
        top1_accuracy=bootstrap_ratio([sum(score.hits) for score in scores], tokens, seed),
    )


def _score_batch(model: Any, windows: list[list[int]]) -> list[DocumentScore]:
    import torch

    width = max(len(window) for window in windows)
    padded = torch.zeros(len(windows), width, dtype=torch.long)
    for row, window in enumerate(windows):
        padded[row, : len(window)] = torch.tensor(window)
    padded = padded.to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=padded).logits[:, :-1].float()  # (batch, tokens - 1, vocabulary)
        targets = padded[:, 1:]
        picked = logits.gather(2, targets.unsqueeze(2)).squeeze(2)
        nll = torch.logsumexp(logits, dim=2) - picked
        hits = logits.argmax(dim=2) == targets
    found = []
    for row, window in enumerate(windows):
        scored = len(window) - 1
        total = float(nll[row, :scored].double().sum())
        if not total < float("inf"):
            raise CompressionError(
                f"the checkpoint's likelihoods must be finite, got {total} on a document of {scored} tokens; "
                "the compression broke the model: use milder parameters or another method"
            )
        found.append(DocumentScore(nll=total, hits=tuple(int(hit) for hit in hits[row, :scored].tolist())))
    return found
