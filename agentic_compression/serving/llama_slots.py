"""Slots of a GGUF file: sequences of llama.cpp caches, all portions of a step in one batch, or two.

A sequence with a stream of its own attends to its own cells; in a cache that sequences share, each looks through the
cells of all, which at 16 sequences of 400 tokens takes twice the time. Streams are of one size, so what does not fit
one goes into a shared cache for few long sequences. llama.cpp computes streams in one pass only where their numbers
follow each other, so that the last stream moves into the gap that a finished one leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaContext, LlamaModel
from agentic_compression.errors import ModelError
from agentic_compression.runtimes.select import llama_file
from agentic_compression.serving.batching import Portion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LlamaSlots", "open_llama_model", "split_cells"]

_BATCH = 1024
_BLOCK = 256  # llama.cpp rounds streams to it
_WORTHWHILE = 256


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


def split_cells(slots: int, cells: int, context: int) -> tuple[int, int]:
    """How cells are shared out: those of each stream, and those of the cache for longer sequences.

    Args:
        slots: sequences at once.
        cells: altogether.
        context: of the model, the longest sequence.

    Returns:
        Whole blocks; 0 streams where they would be too small to be of use, 0 shared cells where streams hold a context.
    """
    whole = -(-context // _BLOCK) * _BLOCK
    if cells >= slots * whole:
        return whole, 0
    longest = min(whole, cells)
    stream = (cells - longest) // slots // _BLOCK * _BLOCK
    return (stream, cells - slots * stream) if stream >= _WORTHWHILE else (0, cells)


class LlamaSlots:
    """Requests as sequences. Prompts and answers of a step are computed together.

    Args:
        model: stays open as long as the slots are used.
        slots: sequences.
        cells: of all caches together.
        threads: of a computation.
    """

    batched = True

    def __init__(self, model: LlamaModel, slots: int, cells: int, threads: int) -> None:
        self.slots = slots
        self._stream, shared = split_cells(slots, cells, model.context_length or cells)
        self.cells = shared or self._stream
        self._lanes: list[_Streams | _Shared] = []
        if self._stream:
            self._lanes.append(_Streams(model, slots, self._stream, threads))
        if shared:
            self._lanes.append(_Shared(model, slots, shared, threads))
        self._lane_of: dict[int, _Streams | _Shared] = {}

    def cost(self, tokens: Sequence[int]) -> int:
        """A sequence that fits a stream takes none of the cells that are shared."""
        return sum(count for count in tokens if count > self._stream)

    def run(self, portions: Sequence[Portion]) -> NDArray[np.float32]:
        import numpy as np

        for portion in portions:
            if portion.slot not in self._lane_of:
                needed = max(portion.room, portion.start + len(portion.tokens))
                self._lane_of[portion.slot] = self._lanes[0 if needed <= self._stream else -1]
        if len(lanes := {id(self._lane_of[portion.slot]): self._lane_of[portion.slot] for portion in portions}) == 1:
            return next(iter(lanes.values())).run(portions)
        rows: dict[int, NDArray[np.float32]] = {}
        for lane in lanes.values():
            own = [portion for portion in portions if self._lane_of[portion.slot] is lane]
            wanted = (portion.slot for portion in own if portion.wanted)
            rows.update(zip(wanted, lane.run(own), strict=True))
        return np.stack([rows[portion.slot] for portion in portions if portion.wanted] or [np.empty(0, np.float32)])

    def free(self, slot: int) -> None:
        lane = self._lane_of.pop(slot, None)
        if lane is not None:
            lane.free(slot)


class _Shared:
    """One cache for sequences of any lengths; a slot's number is its sequence's."""

    def __init__(self, model: LlamaModel, slots: int, cells: int, threads: int) -> None:
        self._context = model.context(
            ContextOptions(tokens=cells, sequences=slots, batch=_BATCH, outputs=slots, threads=threads)
        )

    def run(self, portions: Sequence[Portion]) -> NDArray[np.float32]:
        return _decode(self._context, portions, [portion.slot for portion in portions])

    def free(self, slot: int) -> None:
        self._context.remove(slot)


class _Streams:
    """A cache for each sequence; those in use are the first ones, without gaps."""

    def __init__(self, model: LlamaModel, slots: int, cells: int, threads: int) -> None:
        options = ContextOptions(
            tokens=slots * cells, sequences=slots, batch=_BATCH, outputs=slots, threads=threads, unified=False
        )
        self._context = model.context(options)
        self._slots: list[int] = []  # by stream

    def run(self, portions: Sequence[Portion]) -> NDArray[np.float32]:
        self._slots += [portion.slot for portion in portions if portion.slot not in self._slots]
        return _decode(self._context, portions, [self._slots.index(portion.slot) for portion in portions])

    def free(self, slot: int) -> None:
        gap, last = self._slots.index(slot), len(self._slots) - 1
        self._context.remove(gap)
        if gap != last:
            self._context.copy_sequence(last, gap)
            self._context.remove(last)
            self._slots[gap] = self._slots[last]
        self._slots.pop()


def _decode(context: LlamaContext, portions: Sequence[Portion], sequences: Sequence[int]) -> NDArray[np.float32]:
    """Logits of the wanted portions, ``(wanted, vocabulary)``."""
    import numpy as np

    order = np.argsort(np.asarray(sequences), kind="stable")
    lengths = np.asarray([len(portions[place].tokens) for place in order])
    tokens = np.concatenate([np.asarray(portions[place].tokens, dtype=np.int32) for place in order])
    starts = np.asarray([portions[place].start for place in order], dtype=np.int32)
    ends = np.cumsum(lengths)
    positions = (np.arange(len(tokens)) - np.repeat(ends - lengths - starts, lengths)).astype(np.int32)
    owners = np.repeat(np.asarray(sequences, dtype=np.int32)[order], lengths)
    wanted = np.zeros(len(tokens), dtype=bool)
    wanted[ends - 1] = [portions[place].wanted for place in order]
    size = context.options.batch
    parts = [slice(start, start + size) for start in range(0, len(tokens), size)]
    blocks = [context.decode(tokens[part], positions[part], owners[part], wanted[part]) for part in parts]
    logits = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if (order[:-1] < order[1:]).all():
        return logits
    back = np.argsort([place for place in order if portions[place].wanted], kind="stable")
    return logits[back]
