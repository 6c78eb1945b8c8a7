"""Embeddings in pieces, so that answers go on between two of them: the mean of a text's last hidden states.

A text is read in pieces on top of a cache of its own. Attention looks back only, so that the hidden states are those of
one pass, and the mean of the text is the mean of its pieces, weighted by their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from agentic_compression.checkpoints.llama_library import ContextOptions, LlamaContext, LlamaModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PIECE_TOKENS", "Embed", "OpenEmbedder", "llama_embedder", "torch_embedder"]

PIECE_TOKENS = 256
_CELL_BLOCK = 256

Embed = Callable[[Sequence[int]], "Generator[None, None, NDArray[np.float32]]"]
"""Pauses after every piece of a text and returns its vector, of length 1."""
OpenEmbedder = Callable[[int], AbstractContextManager[Embed]]
"""Takes what is needed for texts of so many tokens, and gives it back."""


def torch_embedder(model: Any, in_pieces: bool) -> OpenEmbedder:
    """Of a transformers model.

    Args:
        model: a causal language model.
        in_pieces: whether keys and values are all that it caches; otherwise a piece is a whole text.
    """

    def embed(ids: Sequence[int]) -> Generator[None, None, NDArray[np.float32]]:
        cache, total = None, None
        size = PIECE_TOKENS if in_pieces else len(ids)
        for start in range(0, len(ids), size):
            part, cache = _hidden_sum(model, ids[start : start + size], cache, in_pieces and len(ids) > size)
            total = part if total is None else total + part
            yield
        assert total is not None
        return _of_length_one(total)

    @contextmanager
    def opened(_: int) -> Iterator[Embed]:
        yield embed

    return opened


def _hidden_sum(model: Any, ids: Sequence[int], cache: Any, keeps: bool) -> tuple[NDArray[np.float32], Any]:
    import torch

    with torch.inference_mode():
        tokens = torch.tensor([list(ids)], dtype=torch.long, device=model.device)
        past = {} if cache is None else {"past_key_values": cache}
        output = model.base_model(input_ids=tokens, use_cache=keeps, **past)
        total: NDArray[np.float32] = output.last_hidden_state[0].float().sum(dim=0).cpu().numpy()
    return total, output.past_key_values if keeps else None


def llama_embedder(model: LlamaModel, threads: int) -> OpenEmbedder:
    """Of a GGUF file. Its context is opened for the texts and closed after them: few servers need that memory."""

    @contextmanager
    def opened(longest: int) -> Iterator[Embed]:
        cells = -(-longest // _CELL_BLOCK) * _CELL_BLOCK
        batch = min(cells, PIECE_TOKENS)
        options = ContextOptions(tokens=cells, batch=batch, outputs=batch, threads=threads, embeddings=True)
        context = _PieceContext(model, options)
        try:
            yield context.embed_in_pieces
        finally:
            context.close()

    return opened


class _PieceContext(LlamaContext):
    """A context that goes on with a sequence: llama.cpp's mean is that of the piece that was computed last."""

    def embed_in_pieces(self, ids: Sequence[int]) -> Generator[None, None, NDArray[np.float32]]:
        import numpy as np

        total = np.zeros(self.model.hidden_size, dtype=np.float32)
        for start in range(0, len(ids), self.options.batch):
            part = np.asarray(ids[start : start + self.options.batch], dtype=np.int32)
            if start == 0:
                self.clear()
            self._check_batch(part, len(part))
            positions = np.arange(start, start + len(part), dtype=np.int32)
            self._run(part, positions, np.zeros(len(part), dtype=np.int32), np.ones(len(part), dtype=bool))
            pointer = self._library.llama_get_embeddings_seq(self.handle, 0)
            total += np.ctypeslib.as_array(pointer, shape=total.shape) * len(part)
            yield
        return _of_length_one(total)


def _of_length_one(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    scaled: NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return scaled
