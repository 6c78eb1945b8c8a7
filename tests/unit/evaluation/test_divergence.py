"""Divergence from the teacher against the full sum in float64, across engines and on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agentic_compression.errors import CompressionError, DatasetError, ModelError
from agentic_compression.evaluation import divergence as module
from agentic_compression.evaluation.divergence import measure_divergence
from agentic_compression.evaluation.teacher_cache import (
    TeacherSettings,
    largest_and_rest,
    read_teacher,
    sequences_of,
    teacher_key,
    teacher_logits,
)
from agentic_compression.runtimes import Runtime
from agentic_compression.runtimes.llama_cpp import LlamaCppRuntime
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from tests.unit.runtimes.conftest import dense, dense_path, exact, gguf_path

__all__ = ["dense", "dense_path", "exact", "gguf_path"]

TEXTS = ["the cat runs to the red house", "a dog and a tree", "one two three four five six seven eight", "x"]
SMALL = TeacherSettings(sequences=12, tokens=9, top_k=4096)


def full_divergence(p_logits: NDArray[np.float32], q_logits: NDArray[np.float32]) -> NDArray[np.float64]:
    p, q = (
        x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), axis=1, keepdims=True)
        for x in (p_logits, q_logits)
    )
    found: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=1)
    return found


@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(0.0, 12.0))
@settings(max_examples=60, deadline=None)
def test_the_rest_as_one_bin_is_a_lower_bound(seed: int, kept: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    first, second = (generator.normal(0, scale, (5, 40)).astype(np.float32) for _ in range(2))
    indices = np.argsort(-first, axis=1)[:, :kept]
    found = module._divergences(*largest_and_rest(first, indices), *largest_and_rest(second, indices))
    full = full_divergence(first, second)
    assert (found >= 0).all()
    assert (found <= full + 1e-5).all()
    if kept == 40:
        assert found == pytest.approx(full, abs=1e-5)


def test_a_student_beside_the_full_sum(dense: TransformersRuntime, dense_path: Path, tmp_path: Path) -> None:
    import torch

    student = TransformersRuntime(dense_path, threads=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in student.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    teacher = teacher_logits(dense, TEXTS, SMALL, tmp_path, "t")
    found = measure_divergence(student, teacher)
    pairs = [(dense.logits(w, range(len(w) - 1)), student.logits(w, range(len(w) - 1))) for w in teacher.windows]
    expected = np.concatenate([full_divergence(*pair) for pair in pairs])
    assert found.tokens == len(expected)
    assert found.kl.value == pytest.approx(expected.mean(), rel=1e-3)
    assert found.kl.value > 1e-4
    assert found.kl.low <= found.kl.value <= found.kl.high
    agreed = np.concatenate([a.argmax(axis=1) == b.argmax(axis=1) for a, b in pairs]).mean()
    assert found.top1_agreement.value == pytest.approx(agreed)
    fewer = measure_divergence(
        student, teacher_logits(dense, TEXTS, SMALL.model_copy(update={"top_k": 5}), tmp_path, "t")
    )
    assert 0 <= fewer.kl.value <= found.kl.value + 1e-6
    assert fewer.top_k == 5


def test_the_teacher_does_not_diverge_from_itself(dense: TransformersRuntime, tmp_path: Path) -> None:
    for settings_ in (SMALL, SMALL.model_copy(update={"top_k": 7})):
        found = measure_divergence(dense, teacher_logits(dense, TEXTS, settings_, tmp_path, "t"))
        assert found.kl.value == found.kl.high == 0.0
        assert found.top1_agreement.value == 1.0


def test_a_gguf_student_is_asked_the_same_tokens(
    dense: TransformersRuntime, exact: LlamaCppRuntime, tmp_path: Path
) -> None:
    found = measure_divergence(exact, teacher_logits(dense, TEXTS, SMALL, tmp_path, "t"))
    assert 0 <= found.kl.value < 1e-5
    assert found.top1_agreement.value > 0.95


@pytest.mark.parametrize("name", ["dense", "exact"])
def test_many_sequences_give_the_logits_of_each(name: str, request: pytest.FixtureRequest) -> None:
    runtime: Runtime = request.getfixturevalue(name)
    windows = [[1, 5, 9, 4], [7, 3], [2, 8, 8, 8, 8, 6], [4, 4, 4]]
    found = dict(runtime.sequence_logits(windows, 3))
    assert sorted(found) == [0, 1, 2, 3]
    for place, window in enumerate(windows):
        assert found[place].shape == (len(window), runtime.vocabulary)
        assert found[place] == pytest.approx(runtime.logits(window, range(len(window))), abs=2e-4)


def test_stored_logits_are_read_and_damaged_ones_made_again(
    dense: TransformersRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = teacher_logits(dense, TEXTS, SMALL, tmp_path, "t")
    path = tmp_path / f"{teacher_key('t', TEXTS, SMALL)}.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(TransformersRuntime, "sequence_logits", None)
        again = teacher_logits(dense, TEXTS, SMALL, tmp_path, "t")
    assert again.windows == first.windows
    for field in ("indices", "likelihoods", "rest"):
        assert (getattr(again, field) == getattr(first, field)).all()
    path.write_bytes(path.read_bytes()[:-40])
    assert read_teacher(tmp_path, path.stem) is None
    teacher_logits(dense, TEXTS, SMALL, tmp_path, "t")
    assert read_teacher(tmp_path, path.stem) is not None
    assert teacher_key("u", TEXTS, SMALL) != path.stem != teacher_key("t", TEXTS[:2], SMALL)


def test_long_texts_give_several_sequences(dense: TransformersRuntime) -> None:
    long = TeacherSettings(sequences=5, tokens=6)
    windows = sequences_of(dense, TEXTS, long)
    assert len(windows) == 5
    assert all(2 <= len(window) <= 6 for window in windows)
    assert [window[0] for window in windows] == dense.bos * 5 if dense.bos else True
    with pytest.raises(DatasetError, match="two tokens"):
        sequences_of(dense, [], long)


def test_what_cannot_be_compared_says_why(dense: TransformersRuntime, tmp_path: Path) -> None:
    teacher = teacher_logits(dense, TEXTS, SMALL, tmp_path, "t")
    from dataclasses import replace

    with pytest.raises(ModelError, match="same tokens"):
        measure_divergence(dense, replace(teacher, tokens_digest="other"))
    with pytest.raises(CompressionError, match="finite"):
        largest_and_rest(np.full((2, 4), np.nan, dtype=np.float32), np.zeros((2, 1), dtype=np.int64))
