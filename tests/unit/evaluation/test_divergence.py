"""Divergence from the teacher against the full sum in float64, across engines and on disk."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
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
    _largest,
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


def rewrite(path: Path, **arrays: NDArray[np.generic]) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework="numpy") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    save_file({**held, **arrays}, path, metadata=about)


def test_a_stored_file_whose_parts_do_not_fit_is_not_read(dense: TransformersRuntime, tmp_path: Path) -> None:
    found = teacher_logits(dense, TEXTS, SMALL, tmp_path, "t")
    path = tmp_path / f"{teacher_key('t', TEXTS, SMALL)}.safetensors"
    content = path.read_bytes()
    ids = np.asarray([token for window in found.windows for token in window], dtype=np.int32)
    lengths = np.asarray([len(window) for window in found.windows], dtype=np.int32)
    damages: list[dict[str, NDArray[np.generic]]] = [
        {"ids": ids[:-1]},
        {"lengths": lengths[:0], "ids": ids[:0]},
        {"indices": np.full(found.indices.shape, found.vocabulary, dtype=np.int32)},
        {"indices": np.full(found.indices.shape, -1, dtype=np.int32)},
        {"indices": found.indices[:, 0].astype(np.int32)},
        {"likelihoods": np.full(found.likelihoods.shape, np.nan, dtype=np.float32)},
        {"rest": found.rest[:-1]},
    ]
    for damage in damages:
        rewrite(path, **damage)
        assert read_teacher(tmp_path, path.stem) is None, damage.keys()
        path.write_bytes(content)
    assert read_teacher(tmp_path, path.stem) is not None


def test_a_kill_while_storing_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    """A process that stores the same large file again and again, killed at any moment: whole or not there at all."""
    script = (
        "import sys, numpy as np\n"
        "from agentic_compression.evaluation.teacher_cache import TeacherLogits, _store\n"
        "windows = tuple((1,) * 101 for _ in range(100))\n"
        "large = np.zeros((10_000, 200), dtype=np.float32)\n"
        "found = TeacherLogits(windows, large.astype(np.int64), large, large[:, 0].copy(), 't', 4, 'x')\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    _store(sys.argv[1], 'key', found)\n"
    )
    for delay in (0.0, 0.03):
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.kill()
        child.wait()
        child.stdout.close()
        read = read_teacher(tmp_path, "key")
        assert (read is not None) == (tmp_path / "key.safetensors").exists()


@pytest.mark.parametrize("kept", [1, 2, 5, 9])
def test_the_most_likely_token_is_the_first_of_equals(kept: int) -> None:
    """Logits of half precision are often equal, and ``argmax`` of a student takes the lowest id."""
    logits = np.random.default_rng(0).integers(0, 3, (200, 9)).astype(np.float32)
    found = _largest(logits, kept)
    assert (found[:, 0] == logits.argmax(axis=1)).all()
    expected = -np.sort(-logits, axis=1)[:, :kept]
    assert (np.take_along_axis(logits, found, axis=1) == expected).all()
    assert all(len(set(row)) == kept for row in found.tolist())


def test_a_large_vocabulary_needs_little_more_than_its_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((160, 50_000), dtype=np.float32)  # 32 MB
    tracemalloc.start()
    try:
        indices = _largest(logits, 64)
        likelihoods, rest = largest_and_rest(logits, indices)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 45e6
    logits, indices, likelihoods, rest = logits[:50], indices[:50], likelihoods[:50], rest[:50]
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
    assert likelihoods == pytest.approx(np.take_along_axis(exact, indices, axis=1), abs=1e-4)
    np.put_along_axis(exact, indices, -np.inf, axis=1)
    assert rest == pytest.approx(np.logaddexp.reduce(exact, axis=1), abs=1e-4)


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
    with pytest.raises(ModelError, match="at once"):
        measure_divergence(dense, replace(teacher, windows=((1,) * (dense.context_length + 1),)))
    with pytest.raises(CompressionError, match="finite"):
        largest_and_rest(np.full((2, 4), np.nan, dtype=np.float32), np.zeros((2, 1), dtype=np.int64))
