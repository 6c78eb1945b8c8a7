"""Memory of the engines' device. NVML is a stand-in here: no GPU was there when this was written."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from agentic_compression.serving.device_memory import GpuMemory, HostMemory, open_memory


class Driver:
    """Stands in for ``pynvml`` with two GPUs."""

    def __init__(self) -> None:
        self.gpus: dict[str, dict[int, int | None]] = {"GPU-a": {}, "GPU-b": {41: 700, 42: None}}

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return list(self.gpus)[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.gpus:
            raise RuntimeError("Invalid Argument")
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        used = sum(size or 0 for size in self.gpus[handle].values())
        return SimpleNamespace(total=1000, used=used, free=1000 - used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in self.gpus[handle].items()]


@pytest.mark.parametrize(
    ("visible", "device", "free"),
    [
        ("", "cuda", 1000),
        ("", "cuda:1", 300),
        ("1", "cuda:0", 300),
        ("GPU-b,GPU-a", "cuda:0", 300),
        ("1,0", "cuda:1", 1000),
    ],
)
def test_the_gpu_is_the_one_that_cuda_shows(
    visible: str, device: str, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert GpuMemory(device, Driver()).free() == free


def test_an_engine_has_the_gpus_memory_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    memory = GpuMemory("cuda:1", Driver())
    assert memory.total() == 1000
    assert memory.used_by(41) == 700
    assert memory.used_by(42) is None  # the driver knows the process and may not say
    assert memory.used_by(os.getpid()) is None


def test_the_hosts_memory_is_read() -> None:
    memory = open_memory("cpu")
    assert isinstance(memory, HostMemory)
    assert memory.total() == psutil.virtual_memory().total
    assert 0 < memory.free() <= psutil.virtual_memory().total
    before = memory.used_by(os.getpid())
    block = bytearray(os.urandom(1 << 16) * 1024)
    after = memory.used_by(os.getpid())
    assert before is not None
    assert after is not None
    assert after - before > len(block) // 2
    assert memory.used_by(2**22 + 1) is None


def test_without_a_driver_torch_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentic_compression.serving import device_memory

    monkeypatch.setattr(device_memory, "free_bytes", lambda device: {"cuda:0": 5}[device])
    memory = open_memory("cuda:0")
    if isinstance(memory, GpuMemory):
        pytest.skip("there is a GPU")
    assert memory.free() == 5
    assert memory.used_by(os.getpid()) is None


def test_a_driver_that_does_not_tell_leaves_the_memory_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Driver):
        def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
            raise RuntimeError("Not Supported")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert GpuMemory("cuda:1", Silent()).used_by(41) is None
