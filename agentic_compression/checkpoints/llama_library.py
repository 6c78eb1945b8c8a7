"""llama.cpp from Python: the C functions that the ``xllamacpp`` wheel exports, behind two classes.

The wheel's Python interface is a server; evaluation needs logits of chosen positions, several sequences in one cache
and embeddings, which only the C interface gives. Both call the same compiled code, so what is measured here is what
serves there. Nothing is loaded when this module is imported.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentic_compression.checkpoints.llama_layout import (
    FLASH_ATTENTION_OFF,
    LOAD_MODES,
    POOLING_MEAN,
    TYPE_F32,
    Batch,
    clear_errors,
    error_log,
    load_library,
)
from agentic_compression.errors import CompressionError, ModelError, UnavailableError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ContextOptions", "LlamaContext", "LlamaModel", "llama_version", "supports_gpu", "unavailable_reason"]

_MAGIC = b"GGUF"


def unavailable_reason() -> str | None:
    """Why llama.cpp cannot run here, or None when it can."""
    try:
        load_library()
    except UnavailableError as error:
        return str(error)
    return None


def supports_gpu() -> bool:
    """Whether the installed llama.cpp was built for GPUs.

    Raises:
        UnavailableError: when llama.cpp is not installed or is another build.
    """
    return bool(load_library().llama_supports_gpu_offload())


def llama_version() -> str:
    """``llama.cpp (xllamacpp 2026.10.11549)``: the wheel's version ends in llama.cpp's build number."""
    return f"llama.cpp (xllamacpp {importlib.metadata.version('xllamacpp')})"


class LlamaModel:
    """A GGUF file in memory: its vocabulary and, unless ``vocab_only``, its weights.

    Use it as a context manager, or call :meth:`close`. Contexts made from it are closed with it.

    Args:
        path: one ``.gguf`` file.
        vocab_only: read the vocabulary and the metadata, no weights.
        load: ``mmap`` the file, pages coming as they are touched, or ``read`` it into memory of its own.
        gpu: put all layers on the GPU.

    Raises:
        ModelError: when the file is missing, is no GGUF file or llama.cpp cannot load it; with llama.cpp's reason.
        UnavailableError: when llama.cpp is not installed, is another build, or cannot use a GPU.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        vocab_only: bool = False,
        load: Literal["mmap", "read"] = "mmap",
        gpu: bool = False,
    ) -> None:
        self.path = Path(path)
        _check_magic(self.path)
        self._library = load_library()
        if gpu and not supports_gpu():
            raise UnavailableError(
                "the installed llama.cpp must be built for GPUs to use one, got a CPU build; use device: cpu, "
                "or install xllamacpp from its CUDA package index"
            )
        params = self._library.llama_model_default_params()
        params.vocab_only, params.load_mode = vocab_only, LOAD_MODES[load]
        params.n_gpu_layers = -1 if gpu else 0
        clear_errors()
        self._handle: int | None = self._library.llama_model_load_from_file(str(self.path).encode(), params)
        self._contexts: list[LlamaContext] = []
        if not self._handle:
            raise ModelError(f"llama.cpp must be able to load {self.path}, got: {error_log()}; convert the model again")
        self._vocab = self._library.llama_model_get_vocab(self._handle)

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the contexts and the weights; calling it again does nothing."""
        for context in list(self._contexts):
            context.close()
        if self._handle:
            self._library.llama_model_free(self._handle)
            self._handle = None

    @property
    def handle(self) -> int:
        """The C pointer.

        Raises:
            ValueError: when the model is closed.
        """
        if not self._handle:
            raise ValueError(f"{self.path} is closed; open it again")
        return self._handle

    @property
    def vocabulary(self) -> int:
        """Number of tokens, which is the width of the logits."""
        return int(self._library.llama_vocab_n_tokens(self._vocabulary_handle))

    @property
    def context_length(self) -> int:
        """Longest sequence the model was trained on; 0 when the file does not say."""
        return int(self._library.llama_model_n_ctx_train(self.handle))

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden state."""
        return int(self._library.llama_model_n_embd_out(self.handle))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(self._library.llama_model_size(self.handle))

    @property
    def bos(self) -> int | None:
        """Beginning-of-sequence token."""
        token = int(self._library.llama_vocab_bos(self._vocabulary_handle))
        return None if token < 0 else token

    @property
    def eos(self) -> int | None:
        """End-of-sequence token."""
        token = int(self._library.llama_vocab_eos(self._vocabulary_handle))
        return None if token < 0 else token

    @property
    def adds_bos(self) -> bool:
        """Whether the file says that texts begin with BOS."""
        return bool(self._library.llama_vocab_get_add_bos(self._vocabulary_handle))

    def metadata(self, key: str) -> str | None:
        """A metadata value of the file as text, such as ``general.architecture``; None when there is none."""
        size = 1 << 10
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = int(self._library.llama_model_meta_val_str(self.handle, key.encode(), buffer, size))
            if length < size:
                return None if length < 0 else buffer.value.decode("utf-8", errors="replace")
            size = length + 1

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids by llama.cpp's own tokenizer.

        Args:
            text: any text; the empty one gives no tokens.
            add_special: put BOS or EOS where the file says so.
            parse_special: read the names of special tokens in the text as those tokens.
        """
        raw = text.encode()
        room = len(raw) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            found = int(
                self._library.llama_tokenize(
                    self._vocabulary_handle, raw, len(raw), ids, room, add_special, parse_special
                )
            )
            if found >= 0:
                return list(ids[:found])
            room = -found

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; invalid UTF-8 becomes U+FFFD. Special tokens are left out unless ``special``."""
        tokens = (ctypes.c_int32 * max(1, len(ids)))(*ids)
        room = 8 * len(ids) + 8
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = int(
                self._library.llama_detokenize(self._vocabulary_handle, tokens, len(ids), buffer, room, False, special)
            )
            if length >= 0:
                return buffer.raw[:length].decode("utf-8", errors="replace")
            room = -length

    def context(self, options: ContextOptions) -> LlamaContext:
        """A context to run sequences in."""
        return LlamaContext(self, options)

    @property
    def _vocabulary_handle(self) -> int:
        self.handle  # noqa: B018 - raises when the model is closed, instead of following a dangling pointer
        return int(self._vocab)


@dataclass(frozen=True)
class ContextOptions:
    """How a context is built. llama.cpp allocates the whole key-value cache at once.

    Attributes:
        tokens: cells of the cache, of all sequences together.
        sequences: sequences at once, at most 256.
        unified: they share the cells, and each looks through all of them; otherwise each has an equal part of its own.
        batch: tokens computed at once.
        outputs: positions of one batch whose logits are wanted, at most; bounds the memory set aside for logits.
        threads: of the computation.
        exact: cache and attention in float32, for comparisons; otherwise llama.cpp's own choice, float16.
        embeddings: give the mean of the last hidden states of every sequence instead of logits.
    """

    tokens: int
    sequences: int = 1
    batch: int = 512
    outputs: int | None = None
    threads: int = 1
    exact: bool = False
    embeddings: bool = False
    unified: bool = True


class LlamaContext:
    """A key-value cache and the computation on top of it.

    Args:
        model: where the weights are; it must outlive the context.
        options: sizes and threads.

    Raises:
        UsageError: when the batch is smaller than the number of sequences.
        MemoryError: when llama.cpp cannot allocate it.
    """

    def __init__(self, model: LlamaModel, options: ContextOptions) -> None:
        if options.batch < options.sequences:
            raise UsageError(
                f"a batch must hold a token of each of the {options.sequences} sequences, got {options.batch}; raise it"
            )
        self.model, self.options = model, options
        self._library = library = load_library()
        params = library.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = options.tokens, options.sequences, options.unified
        params.n_batch = params.n_ubatch = options.batch
        # llama.cpp aborts the process when there may be fewer outputs than sequences.
        params.n_outputs_max = max(options.outputs or options.batch, options.sequences)
        params.n_threads = params.n_threads_batch = options.threads
        if options.exact:
            params.type_k = params.type_v = TYPE_F32
            params.flash_attn_type = FLASH_ATTENTION_OFF
        if options.embeddings:
            params.embeddings, params.pooling_type = True, POOLING_MEAN
        clear_errors()
        self._handle: int | None = library.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise MemoryError(
                f"llama.cpp must be able to allocate a context of {options.tokens:,} tokens, got: {error_log()}"
            )
        self._memory = library.llama_get_memory(self._handle)
        model._contexts.append(self)

    def __enter__(self) -> LlamaContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the cache; calling it again does nothing."""
        if self._handle:
            self._library.llama_free(self._handle)
            self._handle = None
            self.model._contexts.remove(self)

    @property
    def handle(self) -> int:
        """The C pointer.

        Raises:
            ValueError: when the context is closed.
        """
        if not self._handle:
            raise ValueError(f"the context of {self.model.path} is closed; open another")
        return self._handle

    def decode(
        self,
        tokens: Sequence[int] | NDArray[np.int32],
        positions: Sequence[int] | NDArray[np.int32],
        sequences: Sequence[int] | NDArray[np.int32],
        wanted: Sequence[bool] | NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Run tokens on top of the cache, at most ``options.batch`` of them.

        Args:
            tokens: ids, ``(tokens,)``.
            positions: position of each token in its sequence.
            sequences: sequence of each token, from 0.
            wanted: whether the logits after this token are returned.

        Returns:
            Logits ``(wanted tokens, vocabulary)`` in the order of the tokens; a copy.

        Raises:
            UsageError: when a token is not in the vocabulary, or there are more tokens than fit.
            CompressionError: when llama.cpp cannot compute the batch.
        """
        import numpy as np

        outputs = int(np.count_nonzero(wanted))
        self._check_batch(tokens, outputs)
        self._run(tokens, positions, sequences, wanted)
        width = self.model.vocabulary
        if not outputs:
            return np.empty((0, width), dtype=np.float32)
        pointer = self._library.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, shape=(outputs, width)).copy()

    def embed(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Mean of the last hidden states of each sequence, ``(sequences, hidden)``; clears the cache first.

        Raises:
            UsageError: when the context was not made for embeddings, or the sequences do not fit one batch.
        """
        import numpy as np

        if not self.options.embeddings:
            raise UsageError("the context must be made with embeddings=True to embed, got embeddings=False")
        self.clear()
        tokens = np.concatenate([np.asarray(ids, dtype=np.int32) for ids in sequences])
        positions = np.concatenate([np.arange(len(ids), dtype=np.int32) for ids in sequences])
        owners = np.repeat(np.arange(len(sequences), dtype=np.int32), [len(ids) for ids in sequences])
        self._check_batch(tokens, len(tokens))
        self._run(tokens, positions, owners, np.ones(len(tokens), dtype=bool))
        width = self.model.hidden_size
        vectors = np.empty((len(sequences), width), dtype=np.float32)
        for row in range(len(sequences)):
            pointer = self._library.llama_get_embeddings_seq(self.handle, row)
            vectors[row] = np.ctypeslib.as_array(pointer, shape=(width,))
        return vectors

    def copy_sequence(self, source: int, target: int) -> None:
        """Let ``target``, which is empty, hold what ``source`` does; nothing is copied in a unified cache."""
        self.handle  # noqa: B018
        self._library.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def remove(self, sequence: int, start: int = 0) -> None:
        """Forget a sequence from a position on."""
        self.handle  # noqa: B018
        if not self._library.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise CompressionError(f"llama.cpp's cache of {self.model.path} must be able to drop a sequence's end")

    def clear(self) -> None:
        """Forget every sequence."""
        self.handle  # noqa: B018
        self._library.llama_memory_clear(self._memory, False)

    @property
    def _cells(self) -> int:
        """That one sequence may have."""
        return self.options.tokens if self.options.unified else self.options.tokens // self.options.sequences

    def _check_batch(self, tokens: Any, outputs: int) -> None:
        """llama.cpp aborts the process on some wrong batches, so they are refused before."""
        import numpy as np

        limit = self.options.outputs or self.options.batch
        if len(tokens) > self.options.batch or outputs > limit:
            raise UsageError(
                f"a batch must have at most {self.options.batch} tokens and {limit} outputs, "
                f"got {len(tokens)} and {outputs}; split it"
            )
        ids = np.asarray(tokens)
        if len(ids) == 0 or ids.min() < 0 or ids.max() >= self.model.vocabulary:
            got = f"{ids.min()} to {ids.max()}" if len(ids) else "no token"
            raise UsageError(f"token ids must lie in 0 to {self.model.vocabulary - 1}, got {got}")

    def _run(self, tokens: Any, positions: Any, sequences: Any, wanted: Any) -> None:
        import numpy as np

        arrays = [np.ascontiguousarray(values, dtype=np.int32) for values in (tokens, positions, sequences)]
        count = len(arrays[0])
        ones = np.ones(count, dtype=np.int32)
        marks = np.ascontiguousarray(wanted, dtype=np.int8)
        integer = ctypes.POINTER(ctypes.c_int32)
        # seq_id is an array of pointers, one a token, each to that token's own sequence id
        owners = np.arange(count, dtype=np.uintp) * arrays[2].itemsize + arrays[2].ctypes.data
        batch = Batch(
            n_tokens=count,
            token=arrays[0].ctypes.data_as(integer),
            pos=arrays[1].ctypes.data_as(integer),
            n_seq_id=ones.ctypes.data_as(integer),
            seq_id=owners.ctypes.data_as(ctypes.POINTER(integer)),
            logits=marks.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        clear_errors()
        status = int(self._library.llama_decode(self.handle, batch))
        if status == 1:
            raise UsageError(
                f"the tokens must fit the context's {self._cells} cells, got no free cell; shorten the input"
            )
        if status != 0:
            raise CompressionError(f"llama.cpp must compute every batch, got status {status}: {error_log()}")


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise ModelError(f"{path} must be a readable GGUF file, got {error.strerror}; check the path") from error
    if magic != _MAGIC:
        raise ModelError(f"{path} must begin with the bytes GGUF, got {magic!r}; it is no GGUF file or is damaged")
