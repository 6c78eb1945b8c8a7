from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from agentic_compression import resident_memory
from agentic_compression.errors import CompressionError
from agentic_compression.evaluation import memory
from agentic_compression.evaluation.memory import MemoryProbe, Observation, _read_answer, measure_memory, memory_of
from agentic_compression.records import EvaluationSettings
from agentic_compression.resident_memory import peak_bytes, reset_peak, resident_bytes

MEGABYTE = 1 << 20
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the kernel cannot reset the peak here"
)


def touch(megabytes: int) -> None:
    """Use so much memory of its own for a moment: pages of a new mapping, not of the heap that earlier tests left."""
    with mmap.mmap(-1, megabytes * MEGABYTE) as pages:
        for offset in range(0, len(pages), mmap.PAGESIZE):
            pages[offset] = 1


@needs_proc
def test_peak_sees_a_planted_allocation_that_is_gone_again() -> None:
    touch(1)
    assert reset_peak()
    before = resident_bytes()
    touch(64)
    growth = peak_bytes() - before
    assert 60 * MEGABYTE < growth < 90 * MEGABYTE
    assert reset_peak()
    assert peak_bytes() - resident_bytes() < 8 * MEGABYTE


def test_status_fields_agree_with_psutil() -> None:
    import psutil

    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert peak_bytes() >= resident_bytes() * 0.95


def test_lifetime_peak_is_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resident_memory, "_STATUS", Path("/nonexistent"))
    monkeypatch.setattr(resident_memory, "_CLEAR_REFS", Path("/nonexistent/clear_refs"))
    assert not reset_peak()
    assert peak_bytes() == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.01)
    assert resident_bytes() > MEGABYTE


@needs_proc
def test_repetitions_agree_and_see_the_weights(tiny_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=68, hidden_size=512, intermediate_size=2048, num_hidden_layers=3, num_attention_heads=8)
    )
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_path).save_pretrained(tmp_path)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    seen: list[tuple[str, int, int]] = []
    measured = measure_memory(_probe(tmp_path), 3, lambda *report: seen.append(report))
    assert measured.peak_growth_bytes.n == 3
    assert measured.peak_growth_bytes.spread < 2 * MEGABYTE
    assert measured.weights_bytes == pytest.approx(weights, rel=0.01)
    assert 0.95 * weights < measured.peak_growth_bytes.value < 1.5 * weights
    assert measured.peak_rss_bytes > measured.peak_growth_bytes.value
    assert measured.kv_cache_bytes_per_token == 2 * 3 * 512 * 4  # keys and values, layers, width, float32
    assert measured.kv_cache_bytes == 19 * 2 * 3 * 512 * 4  # of 16 + 4 tokens the last is never run
    rest = measured.peak_growth_bytes.value - measured.weights_bytes - measured.kv_cache_bytes
    assert measured.activation_bytes == max(0, round(rest))
    assert seen[-1] == ("memory", 3, 3)


def test_growth_is_told_apart_and_never_below_nothing() -> None:
    one = Observation(growth=900, peak_rss=5000, weights=500, cache_per_token=3, cache=60)
    more = one.model_copy(update={"growth": 1100})
    split = memory_of([one, more])
    assert (split.weights_bytes, split.kv_cache_bytes, split.kv_cache_bytes_per_token) == (500, 60, 3)
    assert split.activation_bytes == 1000 - 500 - 60
    assert memory_of([one.model_copy(update={"growth": 520})]).activation_bytes == 0
    unknown = memory_of([one.model_copy(update={"cache": None, "cache_per_token": None})])
    assert (unknown.kv_cache_bytes, unknown.activation_bytes) == (None, None)
    device = memory_of([one.model_copy(update={"device_peak": 900})])
    assert (device.device_peak_bytes, device.activation_bytes) == (900, 340)


def test_a_failing_repetition_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: MemoryProbe) -> None:
        raise ValueError("no such layer")

    monkeypatch.setattr(memory, "observe", fail)
    with pytest.raises(CompressionError, match="loading and serving the checkpoint failed: ValueError: no such layer"):
        _read_answer(memory._fork_and_observe(_probe(tmp_path)))


def test_running_out_of_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        _read_answer('{"error": "DefaultCPUAllocator: can\'t allocate memory", "kind": "RuntimeError"}')
    with pytest.raises(MemoryError):
        _read_answer('{"error": "killed", "kind": "MemoryError"}')


def test_a_killed_repetition_counts_as_out_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "observe", lambda _: os.kill(os.getpid(), 9))
    with pytest.raises(MemoryError, match="ended with code -9"):
        _read_answer(memory._fork_and_observe(_probe(tmp_path)))


def _probe(path: Path) -> MemoryProbe:
    return MemoryProbe(
        path=str(path), device="cpu", threads=1, settings=EvaluationSettings(prompt_tokens=16, new_tokens=4)
    )
