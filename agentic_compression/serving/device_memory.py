"""Memory of the device that engines load into: what is free on it, and what one engine's process takes of it."""

from __future__ import annotations

import logging
import os
from typing import Any, Protocol

from agentic_compression.resident_memory import free_bytes

__all__ = ["DeviceMemory", "GpuMemory", "HostMemory", "open_memory"]

_LOG = logging.getLogger("agentic_compression.serving")


class DeviceMemory(Protocol):
    """Reads a device's memory."""

    def free(self) -> int:
        """Bytes that a new engine can take. Cheap: asked again and again while a load waits."""
        ...

    def total(self) -> int:
        """Bytes of the whole device."""
        ...

    def used_by(self, pid: int) -> int | None:
        """Bytes that a process has and shares with no other; None when that cannot be told.

        May take seconds where the process is large: call it outside the event loop.
        """
        ...


class HostMemory:
    """The machine's memory, less where a control group allows less."""

    def free(self) -> int:
        """See ``DeviceMemory``."""
        return free_bytes()

    def total(self) -> int:
        """See ``DeviceMemory``."""
        import psutil

        return int(psutil.virtual_memory().total)

    def used_by(self, pid: int) -> int | None:
        """See ``DeviceMemory``."""
        import psutil

        try:
            return int(psutil.Process(pid).memory_full_info().uss)
        except psutil.Error:
            return None


class GpuMemory:
    """A GPU's memory as its driver tells it, so that the server needs neither torch nor a context on the GPU.

    Tested with a stand-in for NVML, not yet on a GPU. CUDA numbers the fastest GPU first and NVML goes by the bus:
    where GPUs differ, name them in ``CUDA_VISIBLE_DEVICES``. In a container the driver may not know a process by the
    id that it has inside; its memory is then unknown.

    Args:
        device: ``cuda`` or ``cuda:n``, counted within ``CUDA_VISIBLE_DEVICES``.
        nvml: the module ``pynvml``; imported when None.

    Raises:
        ImportError: when nvidia-ml-py is not installed.
        Exception: NVML's own, when there is no driver or no such GPU.
    """

    def __init__(self, device: str, nvml: Any = None) -> None:
        if nvml is None:
            import pynvml

            nvml = pynvml
        nvml.nvmlInit()
        index = int(device.partition(":")[2] or 0)
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        name = visible[index] if visible else str(index)
        by_index = name.isdigit()
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_index else nvml.nvmlDeviceGetHandleByUUID(name)

    def free(self) -> int:
        """See ``DeviceMemory``."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).free)

    def total(self) -> int:
        """See ``DeviceMemory``."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    def used_by(self, pid: int) -> int | None:
        """See ``DeviceMemory``."""
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except Exception as error:  # NVML's own, such as NVMLError_NotSupported: GPUs that are shared often refuse
            _LOG.debug("the memory of process %d is unknown: NVML said %s", pid, error)
            return None
        used = [item.usedGpuMemory for item in running if item.pid == pid]
        return int(used[0]) if used and used[0] is not None else None


class _TorchMemory:
    """A GPU's free memory as torch tells it, which takes a context on the GPU; what a process has is unknown."""

    def __init__(self, device: str) -> None:
        self._device = device

    def free(self) -> int:
        return free_bytes(self._device)

    def total(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info(self._device)[1])

    def used_by(self, pid: int) -> int | None:
        return None


def open_memory(device: str) -> DeviceMemory:
    """The reader of a device's memory: NVML on a GPU, torch where there is no NVML."""
    if not device.startswith("cuda"):
        return HostMemory()
    try:
        return GpuMemory(device)
    except Exception as error:  # ImportError, NVMLError_LibraryNotFound, ValueError of a malformed index …
        _LOG.warning("the memory of %s is read by torch, which takes some of it: NVML said %s", device, error)
        return _TorchMemory(device)
