"""Token windows and contexts for training tiny models in tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from agentic_compression.methods import CompressionContext

__all__ = ["random_windows", "training_context"]


def random_windows(count: int = 12, tokens: int = 40, seed: int = 0) -> list[torch.Tensor]:
    """Windows of a little language: every token is the one before plus 1, 2 or 3, lengths differ."""
    generator = torch.Generator().manual_seed(seed)
    windows = []
    for index in range(count):
        steps = torch.randint(1, 4, (1, tokens - index % 5), generator=generator)
        windows.append(2 + steps.cumsum(1) % 200)
    return windows


def training_context(base: Callable[[], Any], scratch: Path | None = None, seed: int = 0) -> CompressionContext:
    """A context with training windows and a teacher."""
    return CompressionContext(seed=seed, training=random_windows(), load_base=base, scratch=scratch)
