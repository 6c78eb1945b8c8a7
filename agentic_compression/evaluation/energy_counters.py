"""Counters of joules: hardware's where there are some, time times watts where there are none.

=====================  ==============================================================  =========
counter                what it counts                                                  source
=====================  ==============================================================  =========
``NvmlCounter``        total energy of GPU boards (NVML, millijoules since boot)       measured
``NvmlPowerCounter``   power samples of GPU boards without that counter, integrated    measured
``RaplCounter``        all CPU packages and DRAM of the machine (Linux powercap)       measured
``CpuTimeCounter``     CPU seconds of this process tree x watts a core                 estimated
``WallTimeCounter``    seconds x watts of a GPU that nothing here can read             estimated
=====================  ==============================================================  =========

The GPU counters leave out the host's CPU; the RAPL counter includes whatever else the machine does. The ``method``
of a counter says so. This module imports only the standard library; pynvml and psutil load on use.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol

from agentic_compression.errors import UnavailableError

__all__ = [
    "CpuTimeCounter",
    "EnergyCounter",
    "NvmlCounter",
    "NvmlPowerCounter",
    "RaplCounter",
    "WallTimeCounter",
    "tree_cpu_seconds",
]

Source = Literal["measured", "estimated"]

_POWERCAP = Path("/sys/class/powercap")
_MIRROR_UJ = 1_000_000


class EnergyCounter(Protocol):
    """A counter of joules that only goes up."""

    @property
    def source(self) -> Source: ...

    @property
    def method(self) -> str: ...

    @property
    def resolution_s(self) -> float:
        """Seconds between two updates at most; shorter spans cannot be told apart."""
        ...

    @property
    def poll_s(self) -> float | None:
        """It must be read at least this often, or it loses energy; None when it keeps count by itself."""
        ...

    @property
    def reason(self) -> str:
        """Why nothing better was read; empty for a hardware counter."""
        ...

    def joules(self) -> float: ...


class CpuTimeCounter:
    """CPU seconds x watts a core; an estimate that knows neither the chip nor its clock."""

    source: Source = "estimated"
    resolution_s = 1e-6
    poll_s: float | None = None

    def __init__(
        self, watts_per_core: float, *, clock: Callable[[], float] = time.process_time, reason: str = ""
    ) -> None:
        self._watts, self._clock = watts_per_core, clock
        self.method = f"CPU time x {watts_per_core:g} W a core"
        self.reason = reason

    def joules(self) -> float:
        """Joules since the clock began."""
        return self._clock() * self._watts


class WallTimeCounter:
    """Seconds x watts: a GPU that is busy all the time, by the user's own figure."""

    source: Source = "estimated"
    resolution_s = 1e-6
    poll_s: float | None = None

    def __init__(self, watts: float, *, clock: Callable[[], float] = time.perf_counter, reason: str = "") -> None:
        self._watts, self._clock = watts, clock
        self.method = f"elapsed time x {watts:g} W of a busy GPU (host CPU not included)"
        self.reason = reason

    def joules(self) -> float:
        """Joules since the clock began."""
        return self._clock() * self._watts


class RaplCounter:
    """Linux powercap: energy of every CPU package, and of DRAM where it has its own counter.

    Counted once each: core and uncore lie inside their package and psys around it, ``intel-rapl-mmio`` is a second
    door to the same counter, and some chips of several dies show one socket's counter once a die. A zone wraps
    around after 65 to 260 kJ, minutes at full power: one wrap between two readings is undone, so a meter reads it
    every ``poll_s`` seconds (a kilowatt needs a minute for 60 kJ).

    Raises:
        UnavailableError: when there is no zone, or one that counts is not readable (since Linux 5.10 only root may,
            unless the mode was changed): a sum that misses a package would look measured and be too low.
    """

    source: Source = "measured"
    resolution_s = 1e-3
    poll_s: float | None = 30.0
    reason = ""

    def __init__(self, folder: Path = _POWERCAP) -> None:
        zones = {zone: _zone_name(zone) for zone in sorted(folder.glob("*-rapl:*"))}
        counted = [zone for zone, name in zones.items() if name.startswith("package") or name == "dram"]
        if not counted:
            raise UnavailableError(f"no RAPL counter below {folder}; this machine or container shows none")
        self._range = {zone: _microjoules(zone / "max_energy_range_uj") for zone in counted}
        self._last = {zone: _microjoules(zone / "energy_uj") for zone in counted}
        self._zones = [zone for zone in counted if not self._mirrors(zone, counted, zones)]
        self._total, self._lock = 0, threading.Lock()
        self.method = "RAPL counter of the whole CPU package (" + ", ".join(zone.name for zone in self._zones) + ")"

    def joules(self) -> float:
        """Joules since this object was made.

        Raises:
            UnavailableError: when a zone can no longer be read, or counted backwards by more than its range.
        """
        with self._lock:
            for zone in self._zones:
                now = _microjoules(zone / "energy_uj")
                step = now - self._last[zone]
                step = step if step >= 0 else step + self._range[zone]
                if step < 0:
                    raise UnavailableError(f"RAPL counter {zone.name} went backwards by more than its range")
                self._total, self._last[zone] = self._total + step, now
            return self._total / 1e6

    def _mirrors(self, zone: Path, counted: list[Path], names: dict[Path, str]) -> bool:
        """Whether an earlier package shows the same count: two meters of their own never agree within a joule."""
        if not names[zone].startswith("package") or self._last[zone] <= _MIRROR_UJ:
            return False
        earlier = [other for other in counted[: counted.index(zone)] if names[other].startswith("package")]
        return any(abs(self._last[zone] - self._last[other]) <= _MIRROR_UJ for other in earlier)


class NvmlCounter:
    """Total energy counter of one or several GPUs (Volta or newer), through nvidia-ml-py.

    NVML updates it about every 0.1 s, so a reading is up to 0.1 s old: measure seconds, between updates
    (``EnergyMeter(…, aligned=True)``). A MIG slice has no counter; its board's is read, other slices included.

    Raises:
        UnavailableError: when the library, the driver or the counter is missing.
    """

    source: Source = "measured"
    resolution_s = 0.1
    poll_s: float | None = None
    reason = ""

    def __init__(self, *indices: int) -> None:
        self._boards = _Boards(indices or (0,))
        self.method = "NVML total energy counter of " + self._boards.text
        self._boards.check(self.joules)

    def joules(self) -> float:
        """Joules since the driver was loaded, of all boards together."""
        return self._boards.total("nvmlDeviceGetTotalEnergyConsumption") / 1e3


class NvmlPowerCounter:
    """Power samples of GPUs that have no energy counter (Pascal and older), integrated by the trapezoid rule.

    Between two samples the power is taken to change in a straight line; it must be read every ``poll_s`` seconds,
    which a meter's thread does. Not for newer boards, whose power reading is an average over the last second.

    Raises:
        UnavailableError: when the library, the driver or the power reading is missing.
    """

    source: Source = "measured"
    resolution_s = 0.1
    poll_s: float | None = 0.02
    reason = "this GPU has no total energy counter"

    def __init__(self, *indices: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._boards = _Boards(indices or (0,))
        self._clock, self._lock, self._joules = clock, threading.Lock(), 0.0
        self._boards.check(self._watts)
        self._last = (clock(), self._watts())
        self.method = "NVML power sampled every 20 ms, trapezoid rule, of " + self._boards.text

    def joules(self) -> float:
        """Joules since this object was made; takes a sample."""
        with self._lock:
            now, watts = self._clock(), self._watts()
            then, before = self._last
            self._joules += (now - then) * (watts + before) / 2
            self._last = (now, watts)
            return self._joules

    def _watts(self) -> float:
        return self._boards.total("nvmlDeviceGetPowerUsage") / 1e3


class _Boards:
    """The GPU boards behind CUDA device numbers, each once."""

    def __init__(self, indices: tuple[int, ...]) -> None:
        self._names = ", ".join(str(index) for index in indices)
        self._handles: list[Any] = []
        self.check(lambda: self._open(indices))

    def check(self, read: Callable[[], object]) -> None:
        try:
            read()
        except Exception as error:  # ImportError, NVMLError_LibraryNotFound, NVMLError_NotSupported …
            raise UnavailableError(f"no NVML energy counter for GPU {self._names}: {error}") from error

    def total(self, query: str) -> int:
        read = getattr(self._nvml, query)
        return sum(int(read(handle)) for handle in self._handles)

    def _open(self, indices: tuple[int, ...]) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml: Any = pynvml
        sliced = False
        for index in indices:
            handle = _nvml_handle(pynvml, index)
            with suppress(Exception):  # only handles of MIG slices have a board around them
                handle, sliced = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle), True
            if handle not in self._handles:
                self._handles.append(handle)
        boards = "the GPU board" if len(self._handles) == 1 else f"{len(self._handles)} GPU boards"
        self.text = boards + " (host CPU not included" + ("; MIG: other slices included)" if sliced else ")")


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


def _nvml_handle(nvml: Any, index: int) -> Any:
    """The handle of CUDA device ``index``: by torch's identifier where torch runs, else by ``CUDA_VISIBLE_DEVICES``.

    CUDA numbers the fastest GPU first and NVML goes by the bus, so the identifier is the safe name.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(Exception):  # a MIG slice's identifier is not a GPU's
            return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not visible:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    name = visible[index]
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def _zone_name(zone: Path) -> str:
    try:
        return (zone / "name").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _microjoules(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"no readable RAPL counter: {path}: {error}; grant read access (chmod a+r) or run as root"
        ) from error
