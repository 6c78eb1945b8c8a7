"""Calibration tokens: a seeded choice of documents, tokenized the way the model was trained to see them."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentic_compression.errors import CompressionError

if TYPE_CHECKING:
    import torch

__all__ = ["MINIMUM_TOKENS", "Packing", "calibration_tokens", "packed_windows", "training_tokens"]

Packing = Literal["documents", "packed"]

MINIMUM_TOKENS = 256
_SHORTEST = 4


def calibration_tokens(
    path: Path, tokenizer: Any, samples: int, tokens: int, seed: int, packing: Packing = "documents"
) -> list[torch.Tensor]:
    """Draw documents and tokenize them, nothing padded.

    The documents are shuffled with ``seed`` and taken in that order. ``documents``: one a window, as perplexity is
    measured; those shorter than 4 tokens are skipped. ``packed``: see :func:`packed_windows`. A tokenizer that puts a
    beginning-of-sequence token (or any other special token) around a text does so here too, one that does not gets
    none.

    Args:
        path: JSONL of ``{"text": …}``.
        tokenizer: the model's.
        samples: windows to draw; all when there are fewer.
        tokens: a document is cut to its first ``tokens`` tokens, a leading special token included; the length of every
            packed window.
        seed: of the shuffle.
        packing: how documents become windows.

    Returns:
        int64 tensors ``(1, tokens of the window)``.

    Raises:
        CompressionError: when the file cannot be read or gives fewer than 256 tokens.
    """
    texts = _read_texts(path)
    random.Random(seed).shuffle(texts)  # noqa: S311 - a reproducible sample, not a secret
    make = packed_windows if packing == "packed" else _documents
    windows = list(islice(make(texts, tokenizer, tokens), samples))
    total = sum(window.shape[1] for window in windows)
    if total < MINIMUM_TOKENS:
        shape = f"windows of {tokens} tokens" if packing == "packed" else "windows"
        raise CompressionError(
            f"calibration needs at least {MINIMUM_TOKENS} tokens, got {total} in {len(windows)} {shape} from "
            f"{len(texts)} documents of {path}; use a longer file, more samples or a method that needs no calibration "
            "(see: acf methods)"
        )
    return windows


def training_tokens(
    path: Path, tokenizer: Any, tokens: int, seed: int, packing: Packing = "documents"
) -> list[torch.Tensor]:
    """Windows of all documents to train on, in a seeded order; the rest as :func:`calibration_tokens`."""
    return calibration_tokens(path, tokenizer, sys.maxsize, tokens, seed, packing)


def packed_windows(texts: Iterable[str], tokenizer: Any, tokens: int) -> Iterator[torch.Tensor]:
    """Windows of equal length over the documents one after the other; what is left over at the end is dropped.

    A document has the special tokens its tokenizer puts around it, and the end-of-sequence token after it where the
    tokenizer has one. Where the tokenizer begins every text with a token of its own, so does every window, also one
    that begins in the middle of a document.

    Args:
        texts: documents.
        tokenizer: the model's.
        tokens: of every window.

    Yields:
        int64 ``(1, tokens)``.
    """
    import torch

    first = _first_token(tokenizer)
    stream: list[int] = []
    for text in texts:
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        if not ids:
            continue
        end = tokenizer.eos_token_id
        stream += ids if end is None or ids[-1] == end else [*ids, end]
        while True:
            begun = first is None or stream[:1] == [first]
            needed = tokens if begun else tokens - 1
            if len(stream) < needed:
                break
            window, stream = stream[:needed], stream[needed:]
            yield torch.tensor([window if begun else [first, *window]], dtype=torch.int64)


def _first_token(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before every text; None when it puts none."""
    begin = tokenizer.bos_token_id
    return begin if begin is not None and list(tokenizer("a", verbose=False)["input_ids"])[:1] == [begin] else None


def _documents(texts: Iterable[str], tokenizer: Any, tokens: int) -> Iterator[torch.Tensor]:
    import torch

    for text in texts:
        # Cut here: asking the tokenizer to truncate would write that into the tokenizer that is saved afterwards.
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][:, :tokens]
        if ids.shape[1] >= _SHORTEST:
            yield ids.to(torch.int64)


def _read_texts(path: Path) -> list[str]:
    texts = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                text = json.loads(line)["text"]
                if not isinstance(text, str):
                    raise CompressionError(f"{path} line {number}: 'text' must be a string, got {type(text).__name__}")
                texts.append(text)
    except OSError as error:
        raise CompressionError(f"calibration file {path} cannot be read: {error.strerror}; check the path") from error
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CompressionError(f'{path} must be JSONL with lines {{"text": "…"}}, line {number} is not') from error
    return texts
