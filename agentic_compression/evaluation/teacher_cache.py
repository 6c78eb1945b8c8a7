"""The teacher's next-token distributions over fixed sequences, computed once and kept on disk.

A position keeps the logarithms of its K largest probabilities and of the sum of all others. Every student is asked the
same token ids, whichever engine runs it, so that a GGUF file can be held against a teacher of safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agentic_compression.errors import CompressionError, DatasetError
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Record, content_digest
from agentic_compression.storage import confined, write_atomically

if TYPE_CHECKING:
    from agentic_compression.runtimes import Runtime

__all__ = [
    "TeacherLogits",
    "TeacherSettings",
    "largest_and_rest",
    "read_teacher",
    "sequences_of",
    "teacher_key",
    "teacher_logits",
    "vocabulary_digest",
]

_VERSION = 1
_LEAST = np.float32(-103.0)  # exp of less is 0 in float32
_CELLS = 1 << 21


class TeacherSettings(Record):
    """Which tokens are compared, and how much of the teacher is kept."""

    sequences: int = Field(default=128, ge=1)
    tokens: int = Field(default=256, ge=2, description="of a sequence, at most")
    top_k: int = Field(default=512, ge=1, description="probabilities kept a position; all where there are fewer")
    batch_size: int = Field(default=64, ge=1)


@dataclass(frozen=True)
class TeacherLogits:
    """A teacher's distributions after every token but the last of each window.

    Attributes:
        windows: token ids of the sequences.
        indices: the K most likely tokens, most likely first, ``(positions, K)``; windows one after another.
        likelihoods: logarithms of their probabilities, ``(positions, K)``.
        rest: logarithm of the probability of all other tokens, ``(positions,)``; about -103 at the least.
        digest: content digest of the teacher's checkpoint.
        vocabulary: width of the teacher's logits.
        tokens_digest: digest of the tokenizer's vocabulary.
    """

    windows: tuple[tuple[int, ...], ...]
    indices: NDArray[np.int64]
    likelihoods: NDArray[np.float32]
    rest: NDArray[np.float32]
    digest: str
    vocabulary: int
    tokens_digest: str

    @property
    def starts(self) -> list[int]:
        """Where each window's positions begin, and the end."""
        return _starts(self.windows)


def teacher_logits(
    runtime: Runtime,
    texts: Sequence[str],
    settings: TeacherSettings,
    root: str | Path,
    digest: str,
    progress: Progress = no_progress,
) -> TeacherLogits:
    """The teacher's distributions, read from disk where they are, else computed and stored, whole or not at all.

    Args:
        runtime: the teacher.
        texts: what is read, in order.
        settings: sequences, tokens, K.
        root: folder of the stored distributions, one file a content key.
        digest: content digest of the teacher's checkpoint.
        progress: told after every batch.

    Raises:
        DatasetError: when no text has two tokens.
        CompressionError: when the teacher's logits are not numbers.
    """
    key = teacher_key(digest, texts, settings)
    known = read_teacher(root, key)
    if known is not None:
        return known
    windows = sequences_of(runtime, texts, settings)
    kept = min(settings.top_k, runtime.vocabulary)
    starts = _starts(windows)
    indices = np.empty((starts[-1], kept), dtype=np.int64)
    likelihoods = np.empty((starts[-1], kept), dtype=np.float32)
    rest = np.empty(starts[-1], dtype=np.float32)
    for done, (place, logits) in enumerate(runtime.sequence_logits(windows, settings.batch_size), start=1):
        part = slice(starts[place], starts[place + 1])
        indices[part] = _largest(logits[:-1], kept)
        likelihoods[part], rest[part] = largest_and_rest(logits[:-1], indices[part])
        progress("teacher", done, len(windows))
    found = TeacherLogits(
        windows=tuple(tuple(window) for window in windows),
        indices=indices,
        likelihoods=likelihoods,
        rest=rest,
        digest=digest,
        vocabulary=runtime.vocabulary,
        tokens_digest=vocabulary_digest(runtime),
    )
    _store(root, key, found)
    return found


def teacher_key(digest: str, texts: Sequence[str], settings: TeacherSettings) -> str:
    """Digest of all that the distributions depend on; the batch size is not among it."""
    asked = settings.model_dump(mode="json", exclude={"batch_size"})
    return content_digest({"version": _VERSION, "teacher": digest, "texts": content_digest(list(texts)), **asked})


def sequences_of(runtime: Runtime, texts: Sequence[str], settings: TeacherSettings) -> list[list[int]]:
    """Windows of at most ``tokens`` ids: the first of every text, then the second of the longer ones, and so on.

    Every window begins with BOS where the tokenizer has one. Windows of one token are left out.

    Raises:
        DatasetError: when none is left.
    """
    most = min(settings.tokens, runtime.context_length) - len(runtime.bos)
    encoded = runtime.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    windows: list[list[int]] = []
    longest = max((len(ids) for ids in encoded), default=0)
    for begin in range(0, longest, max(1, most)):
        windows += [runtime.bos + list(ids[begin : begin + most]) for ids in encoded if begin < len(ids)]
        windows = [window for window in windows if len(window) > 1]
        if len(windows) >= settings.sequences:
            break
    if not windows:
        raise DatasetError("the held-out text must hold a text of two tokens or more, got none")
    return windows[: settings.sequences]


def largest_and_rest(
    logits: NDArray[np.float32], indices: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log-probabilities of the tokens at ``indices`` and of all others together.

    Args:
        logits: ``(positions, vocabulary)``, defined up to a constant a row.
        indices: ``(positions, K)``.

    Returns:
        ``(positions, K)`` and ``(positions,)``; float32, sums in float64. A probability of 0 is given as e^-103.

    Raises:
        CompressionError: when a logit is NaN or +inf, or a row has no finite one.
    """
    highest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():  # NaN is carried by max
        bad = int((~np.isfinite(highest)).sum())
        raise CompressionError(
            f"the checkpoint's logits must be finite, got none or NaN at {bad} of {len(logits)} positions; "
            "the compression broke the model: use milder parameters or another method"
        )
    chosen, rest = np.empty(indices.shape, dtype=np.float32), np.empty(len(indices), dtype=np.float32)
    for rows in _blocks(*logits.shape):
        shifted = logits[rows] - highest[rows]
        powers = np.exp(shifted)
        total = np.log(powers.sum(axis=1, dtype=np.float64))
        chosen[rows] = np.take_along_axis(shifted, indices[rows], axis=1) - total[:, None]
        np.put_along_axis(powers, indices[rows], 0.0, axis=1)
        with np.errstate(divide="ignore"):
            rest[rows] = np.log(powers.sum(axis=1, dtype=np.float64)) - total
    return np.maximum(chosen, _LEAST), np.maximum(rest, _LEAST)


def read_teacher(root: str | Path, key: str) -> TeacherLogits | None:
    """The stored distributions; None where there are none or the file is damaged, so that they are computed again."""
    from safetensors import SafetensorError, safe_open

    path = confined(Path(root), f"{key}.safetensors")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["about"])
            ids, lengths = file.get_tensor("ids").tolist(), file.get_tensor("lengths").tolist()
            found = TeacherLogits(
                windows=_windows(ids, lengths),
                indices=file.get_tensor("indices").astype(np.int64),
                likelihoods=file.get_tensor("likelihoods"),
                rest=file.get_tensor("rest"),
                digest=str(about["digest"]),
                vocabulary=int(about["vocabulary"]),
                tokens_digest=str(about["tokens_digest"]),
            )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return found if _is_whole(found) else None


def vocabulary_digest(runtime: Runtime) -> str:
    """Digest of the tokenizer's tokens and their ids."""
    return content_digest(sorted(runtime.tokenizer.get_vocab().items()))


def _store(root: str | Path, key: str, found: TeacherLogits) -> None:
    from safetensors.numpy import save

    narrow = np.uint16 if found.vocabulary <= 1 << 16 else np.int32
    arrays = {
        "ids": np.asarray([token for window in found.windows for token in window], dtype=np.int32),
        "lengths": np.asarray([len(window) for window in found.windows], dtype=np.int32),
        "indices": found.indices.astype(narrow),
        "likelihoods": found.likelihoods,
        "rest": found.rest,
    }
    about = {"digest": found.digest, "vocabulary": found.vocabulary, "tokens_digest": found.tokens_digest}
    write_atomically(confined(Path(root), f"{key}.safetensors"), save(arrays, metadata={"about": json.dumps(about)}))


def _windows(ids: list[int], lengths: list[int]) -> tuple[tuple[int, ...], ...]:
    """The sequences that were stored one after another; ValueError when they are not those ids."""
    if sum(lengths) != len(ids):
        raise ValueError(f"{sum(lengths)} tokens of sequences must be stored, got {len(ids)}")
    ends = np.cumsum(lengths).tolist()
    return tuple(tuple(ids[end - length : end]) for end, length in zip(ends, lengths, strict=True))


def _starts(windows: Sequence[Sequence[int]]) -> list[int]:
    return [0, *np.cumsum([len(window) - 1 for window in windows]).tolist()]


def _is_whole(found: TeacherLogits) -> bool:
    """Whether a stored file's parts fit each other; that it is not cut short, safetensors has checked."""
    positions, indices = found.starts[-1], found.indices
    if not 0 < positions == len(indices) == len(found.rest) or indices.ndim != 2:
        return False
    inside = int(indices.min()) >= 0 and int(indices.max()) < found.vocabulary
    numbers = np.isfinite(found.likelihoods).all() and np.isfinite(found.rest).all()
    return inside and bool(numbers) and found.likelihoods.shape == indices.shape


def _blocks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Positions in portions whose logits are few: copies of all of them at once would be gigabytes."""
    rows = max(1, _CELLS // vocabulary)
    return (slice(start, start + rows) for start in range(0, positions, rows))


def _largest(logits: NDArray[np.float32], kept: int) -> NDArray[np.int64]:
    """The ``kept`` most likely tokens of each row, most likely first; first of all what ``argmax`` says."""
    found = np.empty((len(logits), kept), dtype=np.int64)
    for rows in _blocks(*logits.shape):
        part = -logits[rows]
        chosen = np.sort(np.argpartition(part, kept - 1, axis=1)[:, :kept], axis=1)
        order = np.argsort(np.take_along_axis(part, chosen, axis=1), axis=1, kind="stable")
        found[rows] = np.take_along_axis(chosen, order, axis=1)
        # Among more equals than are kept, the partition may have left out the one of the lowest id.
        found[rows, 0] = part.argmin(axis=1)
    return found
