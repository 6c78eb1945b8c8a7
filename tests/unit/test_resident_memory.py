"""Readings of this process's memory, and of what control groups leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from agentic_compression import resident_memory
from agentic_compression.resident_memory import free_bytes, give_back_heap, peak_bytes, reset_peak, resident_bytes

SIZE = 80_000_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's peak cannot be reset here")
def test_peak_remembers_what_was_freed_until_it_is_reset() -> None:
    give_back_heap()
    assert reset_peak()
    before = resident_bytes()
    taken = np.ones(SIZE, dtype=np.uint8)
    assert resident_bytes() - before > 0.9 * SIZE
    del taken
    assert resident_bytes() - before < 0.5 * SIZE
    assert peak_bytes() - before > 0.9 * SIZE
    reset_peak()
    assert peak_bytes() - before < 0.5 * SIZE


def test_free_bytes_are_at_most_what_the_system_has() -> None:
    assert 0 < free_bytes() <= psutil.virtual_memory().total


def group(folder: Path, limit: str, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


def test_limit_of_a_parent_group_counts_and_cache_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(tmp_path / "pod", "1000000", 400_000, cache=300_000)
    group(tmp_path / "pod" / "container", "max", 100_000)
    names = tmp_path / "cgroup"
    names.write_text("0::/pod/container\n")
    real = Path.read_text

    def read(path: Path, *rest: object, **named: object) -> str:
        return real(names if str(path) == "/proc/self/cgroup" else path)

    monkeypatch.setattr(resident_memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(Path, "read_text", read)
    assert free_bytes() == 900_000
    group(tmp_path / "pod" / "container", "150000", 100_000)
    assert free_bytes() == 50_000
