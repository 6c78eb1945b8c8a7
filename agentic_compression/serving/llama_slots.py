"""Slots of a GGUF file: sequences of one llama.cpp cache, all portions of a step in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaModel
from agentic_compression.errors import ModelError
from agentic_compression.runtimes.select import llama_file
from agentic_compression.serving.batching import Portion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LlamaSlots", "open_llama_model"]

_BATCH = 1024


def open_llama_model(folder: Path, device: str) -> LlamaModel:
    """Read the folder's GGUF file into memory.

    Raises:
        ModelError: when there is none or llama.cpp cannot load it.
        UnavailableError: when llama.cpp is missing or cannot use the device.
    """
    file = llama_file(folder)
    if file is None:
        raise ModelError(f"{folder} must hold a .gguf file, got none; export the model to GGUF")
    return LlamaModel(file, load="read", gpu=device.startswith("cuda"))


class LlamaSlots:
    """Requests as sequences of one cache. Prompts and answers of a step are computed in one call.

    Args:
        model: stays open as long as the slots are used.
        slots: sequences.
        cells: of the cache, for all sequences together.
        threads: of a computation.
    """

    batched = True

    def __init__(self, model: LlamaModel, slots: int, cells: int, threads: int) -> None:
        self.slots = slots
        options = ContextOptions(tokens=cells, sequences=slots, batch=_BATCH, outputs=slots, threads=threads)
        self._context = model.context(options)
        self.cells = cells

    def cost(self, tokens: Sequence[int]) -> int:
        return sum(tokens)

    def run(self, portions: Sequence[Portion]) -> NDArray[np.float32]:
        import numpy as np

        tokens = np.concatenate([np.asarray(portion.tokens, dtype=np.int32) for portion in portions])
        positions = np.concatenate(
            [np.arange(item.start, item.start + len(item.tokens), dtype=np.int32) for item in portions]
        )
        lengths = [len(portion.tokens) for portion in portions]
        sequences = np.repeat(np.asarray([portion.slot for portion in portions], dtype=np.int32), lengths)
        wanted = np.zeros(len(tokens), dtype=bool)
        wanted[np.cumsum(lengths) - 1] = [portion.wanted for portion in portions]
        size = self._context.options.batch
        parts = [slice(start, start + size) for start in range(0, len(tokens), size)]
        blocks = [self._context.decode(tokens[part], positions[part], sequences[part], wanted[part]) for part in parts]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def free(self, slot: int) -> None:
        self._context.remove(slot)
