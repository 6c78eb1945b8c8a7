"""Slots of a GGUF file: sequences of one llama.cpp cache, all portions of a step in one batch.

Where the cache has room for a whole context in every slot, each sequence has a stream of its own and attends to its own
cells. Otherwise they share the cells, so that few long sequences fit as well as many short ones, and each looks through
the cells of all: with 16 answers of 400 tokens that takes 1.4 times the time. llama.cpp computes streams in one pass
only where their numbers follow each other, so that the last stream moves into the gap that a finished one leaves.
"""

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

__all__ = ["LlamaSlots", "open_llama_model", "whole_blocks"]

_BATCH = 1024
_BLOCK = 256


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
    """Requests as sequences of one cache. Prompts and answers of a step are computed together.

    Args:
        model: stays open as long as the slots are used.
        slots: sequences.
        cells: of the cache, for all sequences together; of whole blocks.
        threads: of a computation.
    """

    batched = True

    def __init__(self, model: LlamaModel, slots: int, cells: int, threads: int) -> None:
        self.slots, self.cells = slots, cells
        self.has_streams = 0 < slots * whole_blocks(model.context_length) <= cells
        options = ContextOptions(
            tokens=cells, sequences=slots, batch=_BATCH, outputs=slots, threads=threads, unified=not self.has_streams
        )
        self._context = model.context(options)
        self._slots: list[int] = []  # by stream; those in use are the first ones

    def cost(self, tokens: Sequence[int]) -> int:
        """Streams take nothing from each other."""
        return 0 if self.has_streams else sum(tokens)

    def run(self, portions: Sequence[Portion]) -> NDArray[np.float32]:
        import numpy as np

        sequences = np.asarray([self._sequence(portion.slot) for portion in portions], dtype=np.int32)
        order = np.argsort(sequences)  # streams of one pass must follow each other
        sorted_portions = [portions[place] for place in order]
        lengths = np.asarray([len(portion.tokens) for portion in sorted_portions])
        tokens = np.concatenate([np.asarray(portion.tokens, dtype=np.int32) for portion in sorted_portions])
        positions = np.concatenate(
            [np.arange(item.start, item.start + len(item.tokens), dtype=np.int32) for item in sorted_portions]
        )
        owners = np.repeat(sequences[order], lengths)
        wanted = np.zeros(len(tokens), dtype=bool)
        wanted[np.cumsum(lengths) - 1] = [portion.wanted for portion in sorted_portions]
        size = self._context.options.batch
        parts = [slice(start, start + size) for start in range(0, len(tokens), size)]
        blocks = [self._context.decode(tokens[part], positions[part], owners[part], wanted[part]) for part in parts]
        logits = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        places = [place for place in order if portions[place].wanted]
        return logits if places == sorted(places) else logits[np.argsort(places)]

    def _sequence(self, slot: int) -> int:
        if not self.has_streams:
            return slot
        if slot not in self._slots:
            self._slots.append(slot)
        return self._slots.index(slot)

    def free(self, slot: int) -> None:
        if not self.has_streams:
            self._context.remove(slot)
        elif slot in self._slots:
            gap, last = self._slots.index(slot), len(self._slots) - 1
            self._context.remove(gap)
            if gap != last:
                self._context.copy_sequence(last, gap)
                self._context.remove(last)
                self._slots[gap] = self._slots[last]
            self._slots.pop()


def whole_blocks(tokens: int) -> int:
    """Cells for so many tokens, as llama.cpp gives them out."""
    return -(-tokens // _BLOCK) * _BLOCK
