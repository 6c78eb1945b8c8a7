"""Calibration tokens: a seeded choice of documents, tokenized the way the model was trained to see them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError

if TYPE_CHECKING:
    import torch

__all__ = ["MINIMUM_TOKENS", "calibration_tokens"]

MINIMUM_TOKENS = 256
_SHORTEST = 4


def calibration_tokens(path: Path, tokenizer: Any, samples: int, tokens: int, seed: int) -> list[torch.Tensor]:
    """Draw documents and tokenize them: one document a window, as perplexity is measured, nothing packed or padded.

    The documents are shuffled with ``seed`` and taken in that order; those shorter than 4 tokens are skipped. A
    tokenizer that puts a beginning-of-sequence token (or any other special token) around a text does so here too.

    Args:
        path: JSONL of ``{"text": …}``.
        tokenizer: the model's.
        samples: documents to draw; all when there are fewer.
        tokens: a document is cut to its first ``tokens`` tokens, a leading special token included.
        seed: of the shuffle.

    Returns:
        int64 tensors ``(1, tokens of the document)``.

    Raises:
        CompressionError: when the file cannot be read or holds fewer than 256 tokens.
    """
    import torch

    texts = _read_texts(path)
    random.Random(seed).shuffle(texts)  # noqa: S311 - a reproducible sample, not a secret
    windows: list[torch.Tensor] = []
    for text in texts:
        # Cut here: asking the tokenizer to truncate would write that into the tokenizer that is saved afterwards.
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][:, :tokens]
        if ids.shape[1] >= _SHORTEST:
            windows.append(ids.to(torch.int64))
        if len(windows) == samples:
            break
    total = sum(window.shape[1] for window in windows)
    if total < MINIMUM_TOKENS:
        raise CompressionError(
            f"calibration needs at least {MINIMUM_TOKENS} tokens, got {total} from {len(windows)} documents of {path}; "
            "use a longer file, more samples or a method that needs no calibration (see: acf methods)"
        )
    return windows


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
