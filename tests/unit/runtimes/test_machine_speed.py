from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agentic_compression.errors import ConfigurationError
from agentic_compression.runtimes import machine_speed
from agentic_compression.runtimes.machine_speed import matrix_flops, quickest, reading_bandwidth, with_threads


def test_the_quickest_run_counts_and_the_first_does_not() -> None:
    calls: list[int] = []
    seconds = quickest(lambda: calls.append(1), seconds=0.0)
    assert len(calls) == 2
    assert 0 <= seconds < 10


def test_threads_come_back_even_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with with_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert torch.get_num_threads() == before


def test_rates_are_positive_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_speed, "_WIDTHS", {"cpu": (64, 128)})
    monkeypatch.setattr(machine_speed, "_last_cache_bytes", lambda _: 1 << 10)
    assert 1e6 < reading_bandwidth(seconds=0.0) < 1e14
    for dtype in ("float32", "bfloat16"):
        assert 1e6 < matrix_flops(dtype, seconds=0.01) < 1e16


def test_the_buffer_is_eight_last_caches_where_memory_allows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number, text in enumerate(("48K", "12M\n", "broken")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(text)
    monkeypatch.setattr(machine_speed, "_CACHES", tmp_path)
    assert machine_speed._last_cache_bytes("cpu") == 12 << 20
    read: list[int] = []

    def planted(work: object, seconds: float, device: str) -> float:
        read.append(work.__self__.nbytes)  # type: ignore[attr-defined]
        return 2.0

    monkeypatch.setattr(machine_speed, "quickest", planted)
    for free, size in ((1 << 40, 96 << 20), (320 << 20, 80 << 20), (1, 64 << 20)):
        monkeypatch.setattr(machine_speed, "free_bytes", lambda _, free=free: free)
        assert reading_bandwidth() == size / 2
    assert read == [96 << 20, 80 << 20, 64 << 20]


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="float32, bfloat16, float16, got 'int8'"):
        matrix_flops("int8")
