"""The one place where evaluation loads a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.checkpoints import load_checkpoint
from agentic_compression.errors import ModelError

__all__ = ["LoadedModel", "load_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory, ready to run."""

    model: Any
    tokenizer: Any
    weights_bytes: int

    @property
    def bos(self) -> list[int]:
        """The token every text begins with: the tokenizer's BOS, or nothing when it has none."""
        token = self.tokenizer.bos_token_id
        return [] if token is None else [int(token)]

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def context_length(self) -> int:
        """Longest sequence the positions allow; 2048 where the configuration does not say."""
        config = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "n_ctx"):
            if value := getattr(config, name, None):
                return int(value)
        return 2048


def load_model(path: str, device: str) -> LoadedModel:
    """Load a checkpoint folder, ours or a plain Hugging Face one, in the dtype it is stored in.

    Raises:
        ModelError: when the folder is missing, is no model or has no tokenizer.
    """
    if not Path(path).is_dir():
        raise ModelError(f"checkpoint folder {path} does not exist; rebuild it (acf rebuild STUDY EPISODE)")
    loaded = load_checkpoint(path, device=device)
    if loaded.tokenizer is None:
        raise ModelError(f"{path} must hold a tokenizer to be evaluated, got none; copy tokenizer.json into it")
    return LoadedModel(model=loaded.model, tokenizer=loaded.tokenizer, weights_bytes=loaded.weights_bytes)
