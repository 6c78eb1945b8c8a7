"""Training text that the uncompressed model writes itself: sampled token by token from the beginning of a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from agentic_compression.checkpoints.tensor_files import save_tensors
from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import CompressionContext

__all__ = ["sample_windows"]

_BATCH = 64
_SHORTEST = 8


def sample_windows(teacher: Any, count: int, tokens: int, context: CompressionContext) -> list[torch.Tensor]:
    """Draw documents from a model, at temperature 1 and from the whole vocabulary: its own distribution.

    A document begins with the model's beginning-of-sequence token and ends with its end-of-sequence token or after
    ``tokens``. They are kept in the scratch folder, so that a run that goes on need not draw them again.

    Args:
        teacher: a causal language model with a key-value cache.
        count: documents.
        tokens: longest document.
        context: seed, device, scratch folder, progress.

    Returns:
        int64 ``(1, tokens of the document)`` each.

    Raises:
        CompressionError: when the model has no beginning-of-sequence token.
    """
    config = teacher.config.get_text_config()
    begin, end = config.bos_token_id, config.eos_token_id
    if begin is None:
        raise CompressionError(
            f"{type(teacher).__name__} has no beginning-of-sequence token to write text from; use generated=0"
        )
    ends = torch.tensor([] if end is None else [end] if isinstance(end, int) else list(end), dtype=torch.int64)
    stored = (
        None if context.scratch is None else context.scratch / f"samples-{context.seed}-{count}-{tokens}.safetensors"
    )
    if stored is not None and (kept := _read(stored)) is not None:
        return kept
    generator = torch.Generator(device=context.device).manual_seed(context.seed)
    found: list[torch.Tensor] = []
    for start in range(0, count, _BATCH):
        context.progress("sampling", start, count)
        found += _batch(teacher, min(_BATCH, count - start), int(begin), ends, tokens, generator)
    context.progress("sampling", count, count)
    found = [window for window in found if window.shape[1] >= _SHORTEST]
    if stored is not None and found:
        _write(stored, found)
    return found


def _batch(
    teacher: Any, rows: int, begin: int, ends: torch.Tensor, tokens: int, generator: torch.Generator
) -> list[torch.Tensor]:
    """Documents ``(1, tokens)`` drawn side by side, each without what was drawn after its end."""
    device = generator.device
    drawn = torch.full((rows, 1), begin, dtype=torch.int64, device=device)
    open_rows = torch.ones(rows, dtype=torch.bool, device=device)
    lengths = torch.full((rows,), tokens, dtype=torch.int64)
    cache = None
    with torch.no_grad():
        for position in range(1, tokens):
            result = teacher(input_ids=drawn[:, -1:], past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            chances = torch.softmax(result.logits[:, -1].float(), dim=-1)
            following = torch.multinomial(chances, 1, generator=generator)
            drawn = torch.cat((drawn, following), dim=1)
            ended = open_rows & torch.isin(following[:, 0], ends.to(device))
            lengths[ended.cpu()] = position + 1
            open_rows &= ~ended
            if not bool(open_rows.any()):
                break
    return [drawn[row : row + 1, : int(lengths[row])].cpu() for row in range(rows)]


def _read(path: Path) -> list[torch.Tensor] | None:
    try:
        stored = load_file(path)
        return [part[None] for part in stored["ids"].split(stored["lengths"].tolist())]
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None  # not there, or damaged: it is drawn again


def _write(path: Path, windows: list[torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    lengths = torch.tensor([window.shape[1] for window in windows])
    save_tensors({"ids": torch.cat([window[0] for window in windows]), "lengths": lengths}, temporary)
    temporary.replace(path)
