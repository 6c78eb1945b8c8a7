"""The folder's Hugging Face tokenizer, which every runtime uses, and what of it ends an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentic_compression.errors import ModelError, UsageError

__all__ = ["bos_of", "encode_texts", "end_ids", "load_tokenizer"]

_CONFIGURATIONS = ("generation_config.json", "config.json")
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder; code that comes with it is never run.

    Raises:
        ModelError: when the folder holds none, or one that cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _FILES):
        raise ModelError(f"{folder} must hold a tokenizer, got none; copy tokenizer.json into it")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the tokenizer of {folder} must be readable, got {type(error).__name__}: {error}") from error


def bos_of(tokenizer: Any) -> list[int]:
    """The beginning-of-sequence token, or nothing where the tokenizer has none."""
    token = tokenizer.bos_token_id
    return [] if token is None else [int(token)]


def encode_texts(tokenizer: Any, texts: Sequence[str], context_length: int) -> list[list[int]]:
    """Token ids of each text as the tokenizer encodes by default, cut at the context.

    Raises:
        UsageError: when a text has no tokens.
    """
    encoded = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    if not all(encoded):
        raise UsageError("a text must have a token or more, got none; leave empty texts out")
    return [list(ids)[:context_length] for ids in encoded]


def end_ids(tokenizer: Any, folder: Path) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's EOS and those of the generation or else the model configuration.

    Raises:
        ModelError: when a configuration cannot be read.
    """
    found: list[Any] = [tokenizer.eos_token_id]
    path = next((folder / name for name in _CONFIGURATIONS if (folder / name).is_file()), None)
    if path is not None:
        try:
            named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{path} must be a JSON object, got {type(error).__name__}: {error}") from error
        found += named if isinstance(named, list) else [named]
    return frozenset(int(token) for token in found if token is not None)
