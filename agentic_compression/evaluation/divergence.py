"""How far a model's next-token distributions lie from its teacher's, on the teacher's own cached sequences.

The Kullback-Leibler divergence is taken over the teacher's K most likely tokens and one bin for all others, which by
the data-processing inequality is never more than over the whole vocabulary (Cover & Thomas, 2006, section 2.9): a
lower bound, and equal where K is the whole vocabulary. Unlike accuracy it sees changes that flip no answer
(arXiv 2407.09141).
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from agentic_compression.errors import ModelError
from agentic_compression.evaluation.environment import resolve_device, resolve_threads
from agentic_compression.evaluation.intervals import bootstrap_ratio
from agentic_compression.evaluation.language_modelling import read_texts
from agentic_compression.evaluation.teacher_cache import (
    TeacherLogits,
    TeacherSettings,
    largest_and_rest,
    read_teacher,
    teacher_key,
    teacher_logits,
    vocabulary_digest,
)
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import CheckpointRef, DatasetSpec, Divergence, EvaluationSettings, Record
from agentic_compression.runtimes import Runtime, open_runtime, runtime_kind

__all__ = ["DivergenceRequest", "divergence_between", "held_out_texts", "measure_divergence"]


class DivergenceRequest(Record):
    """Two checkpoints and the texts to read; crosses the process boundary."""

    teacher: CheckpointRef
    student: CheckpointRef
    dataset: DatasetSpec
    measured: EvaluationSettings = Field(description="device, threads and seed of the evaluation")
    settings: TeacherSettings = Field(default_factory=TeacherSettings)
    store_root: str = Field(description="folder of the teachers' distributions")


def measure_divergence(
    runtime: Runtime, teacher: TeacherLogits, progress: Progress = no_progress, *, seed: int = 0, batch_size: int = 64
) -> Divergence:
    """Mean divergence a token from the teacher, and how often both find the same token the most likely.

    Args:
        runtime: the student, with the teacher's tokens.
        teacher: its distributions.
        progress: told after every sequence.
        seed: of the bootstrap over sequences.
        batch_size: sequences at once, at most.

    Raises:
        ModelError: when the student has other tokens than the teacher, or too short a context.
        CompressionError: when its logits are not numbers.
    """
    _check_comparable(runtime, teacher)
    starts, count = teacher.starts, len(teacher.windows)
    sums, agreed = np.zeros(count), np.zeros(count)
    found = runtime.sequence_logits(teacher.windows, batch_size)
    for done, (place, logits) in enumerate(found, start=1):
        part = slice(starts[place], starts[place + 1])
        indices = teacher.indices[part]
        likelihoods, rest = largest_and_rest(logits[:-1], indices)
        sums[place] = _divergences(teacher.likelihoods[part], teacher.rest[part], likelihoods, rest).sum()
        agreed[place] = (logits[:-1].argmax(axis=1) == indices[:, 0]).sum()
        progress("divergence", done, count)
    tokens = np.diff(starts).tolist()
    return Divergence(
        kl=bootstrap_ratio(sums.tolist(), tokens, seed),
        top1_agreement=bootstrap_ratio(agreed.tolist(), tokens, seed),
        tokens=starts[-1],
        sequences=count,
        top_k=teacher.indices.shape[1],
        teacher_digest=teacher.digest,
    )


def divergence_between(request: DivergenceRequest, progress: Progress = no_progress) -> Divergence:
    """The divergence of one stored checkpoint from another; what a child process is asked to do.

    Raises:
        AcfError: when a checkpoint or the text cannot be read, or the tokens differ.
    """
    import torch

    texts = held_out_texts(request.dataset)
    threads = resolve_threads(request.measured)
    torch.set_num_threads(threads)
    key = teacher_key(request.teacher.digest, texts, request.settings)
    teacher = read_teacher(request.store_root, key)
    if teacher is None:
        with closing(_open(request.teacher, request.measured, threads)) as runtime:
            teacher = teacher_logits(
                runtime, texts, request.settings, request.store_root, request.teacher.digest, progress
            )
    with closing(_open(request.student, request.measured, threads)) as runtime:
        return measure_divergence(
            runtime, teacher, progress, seed=request.measured.seed, batch_size=request.settings.batch_size
        )


def held_out_texts(dataset: DatasetSpec) -> list[str]:
    """The texts that perplexity is measured on, in their order; none where the dataset has none."""
    path = dataset.perplexity_path or next((task.path for task in dataset.tasks if task.kind == "text"), None)
    return [] if path is None else list(read_texts(path).values())


def _divergences(
    p: NDArray[np.float32], p_rest: NDArray[np.float32], q: NDArray[np.float32], q_rest: NDArray[np.float32]
) -> NDArray[np.float64]:
    """``sum p (log p - log q)`` of each position, from logarithms, in float64; rounding below 0 is cut off."""
    first = np.concatenate([p, p_rest[:, None]], axis=1).astype(np.float64)
    second = np.concatenate([q, q_rest[:, None]], axis=1).astype(np.float64)
    found: NDArray[np.float64] = np.maximum((np.exp(first) * (first - second)).sum(axis=1), 0.0)
    return found


def _check_comparable(runtime: Runtime, teacher: TeacherLogits) -> None:
    if runtime.vocabulary < int(teacher.indices.max()) + 1 or vocabulary_digest(runtime) != teacher.tokens_digest:
        raise ModelError(
            "a divergence needs two models with the same tokens, got another tokenizer or a smaller vocabulary "
            f"({runtime.vocabulary}, the teacher's {teacher.vocabulary}); compare their accuracy instead"
        )
    longest = max(len(window) for window in teacher.windows)
    if longest > runtime.context_length:
        raise ModelError(
            f"a divergence needs a model that reads {longest} tokens at once as the teacher did, got a context of "
            f"{runtime.context_length}; compare their accuracy instead"
        )


def _open(checkpoint: CheckpointRef, settings: EvaluationSettings, threads: int) -> Runtime:
    from agentic_compression.checkpoints.llama_library import supports_gpu

    folder, wanted = Path(checkpoint.path), settings.device
    if wanted == "auto" and runtime_kind(folder) == "llama.cpp" and not supports_gpu():
        wanted = "cpu"
    return open_runtime(folder, resolve_device(wanted), threads)
