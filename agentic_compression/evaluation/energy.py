"""Energy: a hardware counter where there is one, CPU time times watts where there is none.

=====================  ==============================================================  =========
counter                what it counts                                                  source
=====================  ==============================================================  =========
``NvmlCounter``        one GPU board's total energy (NVML, millijoules since boot)     measured
``RaplCounter``        all CPU packages and DRAM of the machine (Linux powercap)       measured
``CpuTimeCounter``     CPU seconds of this process tree x watts a core                 estimated
=====================  ==============================================================  =========

The GPU counter leaves out the host's CPU; the RAPL counter includes whatever else the machine does. The
``method`` of a reading says so. This module imports only the standard library; pynvml and psutil load on use.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from agentic_compression.errors import UnavailableError
from agentic_compression.records import Record

__all__ = [
    "CpuTimeCounter",
    "EnergyCounter",
    "EnergyMeter",
    "EnergyReading",
    "NvmlCounter",
    "RaplCounter",
    "select_counter",
    "tree_cpu_seconds",
]

_POWERCAP = Path("/sys/class/powercap")


class EnergyCounter(Protocol):
    """A counter of joules that only goes up."""

    @property
    def source(self) -> Literal["measured", "estimated"]: ...

    @property
    def method(self) -> str: ...

    @property
    def resolution_s(self) -> float:
        """Seconds between two updates; shorter spans cannot be told apart."""
        ...

    def joules(self) -> float: ...


class EnergyReading(Record):
    """Energy between the entry and the exit of a meter."""

    joules: float
    seconds: float
    source: Literal["measured", "estimated"]
    method: str


class EnergyMeter:
    """Measures what lies in its ``with`` block::

    with EnergyMeter(select_counter("auto", cpu_watts_per_core=15.0)) as meter:
        …
    meter.reading.joules
    """

    def __init__(self, counter: EnergyCounter) -> None:
        self._counter = counter
        self._started = (0.0, 0.0)
        self._reading: EnergyReading | None = None

    def __enter__(self) -> EnergyMeter:
        self._reading = None
        self._started = (self._counter.joules(), time.perf_counter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading = self.so_far()

    @property
    def reading(self) -> EnergyReading:
        """The block's energy; inside the block, what it used so far."""
        return self._reading or self.so_far()

    def so_far(self) -> EnergyReading:
        """Energy since the block was entered."""
        joules, began = self._started
        return EnergyReading(
            joules=max(0.0, self._counter.joules() - joules),
            seconds=time.perf_counter() - began,
            source=self._counter.source,
            method=self._counter.method,
        )


class CpuTimeCounter:
    """CPU seconds x watts a core; an estimate that knows neither the chip nor its clock."""

    source: Literal["measured", "estimated"] = "estimated"
    resolution_s = 1e-6

    def __init__(self, watts_per_core: float, *, clock: Callable[[], float] = time.process_time) -> None:
        self._watts, self._clock = watts_per_core, clock
        self.method = f"CPU time x {watts_per_core:g} W a core"

    def joules(self) -> float:
        """Joules since the clock began."""
        return self._clock() * self._watts


class RaplCounter:
    """Linux powercap: energy of every CPU package, and of DRAM where it has its own counter.

    A zone wraps around after some hundred kilojoules; one wrap between two readings is undone. More than one
    (well over half an hour at full power without a reading) cannot be noticed.

    Raises:
        UnavailableError: when no zone is readable (since Linux 5.10 only root may, unless the mode was changed).
    """

    source: Literal["measured", "estimated"] = "measured"
    resolution_s = 1e-3

    def __init__(self, folder: Path = _POWERCAP) -> None:
        self._zones = [zone for zone in sorted(folder.glob("*-rapl:*")) if _is_wanted(zone)]
        if not self._zones:
            raise UnavailableError(f"no readable RAPL counter below {folder}; grant read access to energy_uj")
        self._range = {zone: _microjoules(zone / "max_energy_range_uj") for zone in self._zones}
        self._last = {zone: _microjoules(zone / "energy_uj") for zone in self._zones}
        self._total = 0
        self.method = "RAPL counter of the whole CPU package (" + ", ".join(zone.name for zone in self._zones) + ")"

    def joules(self) -> float:
        """Joules since this object was made."""
        for zone in self._zones:
            now = _microjoules(zone / "energy_uj")
            step = now - self._last[zone]
            self._total += step if step >= 0 else step + self._range[zone]
            self._last[zone] = now
        return self._total / 1e6


class NvmlCounter:
    """One GPU's total energy counter (Volta or newer), through nvidia-ml-py.

    Raises:
        UnavailableError: when the library, the driver or the counter is missing.
    """

    source: Literal["measured", "estimated"] = "measured"
    resolution_s = 0.1
    method = "NVML total energy counter of the GPU board (host CPU not included)"

    def __init__(self, index: int = 0) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml: Any = pynvml
            self._handle = _nvml_handle(pynvml, index)
            self.joules()
        except Exception as error:  # ImportError, NVMLError_LibraryNotFound, NVMLError_NotSupported …
            raise UnavailableError(f"no NVML energy counter for GPU {index}: {error}") from error

    def joules(self) -> float:
        """Joules since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3


def select_counter(device: str, cpu_watts_per_core: float, *, tree: bool = True) -> EnergyCounter:
    """The best counter for work on a device.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``auto`` (the first GPU when torch was built for GPUs and one is here).
        cpu_watts_per_core: watts of a busy core, for the estimate.
        tree: count children too (whole episodes); otherwise this process alone, at nanosecond resolution.
    """
    if device != "cpu" and not (device == "auto" and _torch_is_cpu_only()):
        _, _, index = device.partition(":")
        with suppress(UnavailableError):
            return NvmlCounter(int(index or 0))
    with suppress(UnavailableError):
        return RaplCounter()
    return CpuTimeCounter(cpu_watts_per_core, clock=tree_cpu_seconds if tree else time.process_time)


def tree_cpu_seconds() -> float:
    """CPU seconds of this process, its live descendants, and every descendant that was waited for.

    A process that ends between two readings moves from its own count into its parent's count of children.
    """
    import psutil

    own = os.times()
    total = time.process_time() + own.children_user + own.children_system
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = process.cpu_times()
            reaped = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
            total += times.user + times.system + reaped
    return total


def _torch_is_cpu_only() -> bool:
    """Whether the installed torch cannot use a GPU, without importing it."""
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return True


def _nvml_handle(nvml: Any, index: int) -> Any:
    """The handle of CUDA device ``index``, which ``CUDA_VISIBLE_DEVICES`` may have renumbered."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not visible:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    name = visible[index]
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def _is_wanted(zone: Path) -> bool:
    """Packages and DRAM; their core and uncore parts are inside the package, psys is around it."""
    try:
        name = (zone / "name").read_text().strip()
        _microjoules(zone / "energy_uj")
        _microjoules(zone / "max_energy_range_uj")
    except (OSError, ValueError):
        return False
    return name.startswith("package") or name == "dram"


def _microjoules(path: Path) -> int:
    return int(path.read_text())
