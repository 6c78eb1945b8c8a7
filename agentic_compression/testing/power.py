"""Hardware whose true energy is known: a simulated clock, a GPU library and a RAPL tree that follow a power profile."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

__all__ = ["FakeNvml", "FakeRapl", "PowerProfile", "SimulatedClock"]


class SimulatedClock:
    """Time that passes only when somebody sleeps; reading a counter takes none."""

    def __init__(self, start: float = 0.0) -> None:
        self.time = start

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class PowerProfile:
    """Watts that are constant between two changes; joules are their exact integral.

    A change may be planned (``at`` given) or made while the clock runs (now).
    """

    def __init__(self, clock: SimulatedClock, watts: float, steps: Sequence[tuple[float, float]] = ()) -> None:
        self._clock = clock
        self._times, self._watts, self._joules = [clock.now()], [watts], [0.0]
        for at, power in sorted(steps):
            self.change(power, at)

    def change(self, watts: float, at: float | None = None) -> None:
        """Draw ``watts`` from now, or from a time after the last change, on."""
        at = self._clock.now() if at is None else at
        self._joules.append(self._joules[-1] + self._watts[-1] * (at - self._times[-1]))
        self._times.append(at)
        self._watts.append(watts)

    def watts(self, at: float | None = None) -> float:
        """Power at a time."""
        at = self._clock.now() if at is None else at
        return self._watts[max(0, bisect_right(self._times, at) - 1)]

    def joules(self, at: float | None = None) -> float:
        """Energy from the profile's beginning to a time."""
        at = self._clock.now() if at is None else at
        last = max(0, bisect_right(self._times, at) - 1)
        return self._joules[last] + self._watts[last] * max(0.0, at - self._times[last])


class FakeNvml(SimpleNamespace):
    """Stands in for the module ``pynvml``; put it into ``sys.modules``.

    Args:
        clock: simulated.
        boards: a profile a board, by NVML index.
        interval_s: between two updates of the energy counters.
        phase_s: time of the first update.
        counter: False for boards older than Volta, which have only a power reading.
    """

    def __init__(
        self,
        clock: SimulatedClock,
        boards: Sequence[PowerProfile],
        *,
        interval_s: float = 0.1,
        phase_s: float = 0.0,
        counter: bool = True,
    ) -> None:
        super().__init__()
        self._clock, self._boards = clock, list(boards)
        self._interval, self._phase, self._counter = interval_s, phase_s, counter
        self.slices: dict[str, int] = {}

    def nvmlInit(self) -> None:  # noqa: N802
        """Nothing to open."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        """The index is the handle."""
        if not 0 <= index < len(self._boards):
            raise RuntimeError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int | str:  # noqa: N802
        """``GPU-<index>``, or the name of a slice."""
        return uuid if uuid in self.slices else self.nvmlDeviceGetHandleByIndex(int(uuid.removeprefix("GPU-")))

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: int | str) -> int:  # noqa: N802
        """The board of a slice."""
        if handle not in self.slices:
            raise RuntimeError("Invalid Argument")
        return self.slices[str(handle)]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        """Millijoules at the last update."""
        if not self._counter:
            raise RuntimeError("Not Supported")
        # Floor division of floats can land a hair below an update that has just been reached.
        updates = (self._clock.now() - self._phase + 1e-9) // self._interval
        return int(self._boards[handle].joules(self._phase + updates * self._interval) * 1e3)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        """Milliwatts now."""
        return round(self._boards[handle].watts() * 1e3)


class FakeRapl:
    """A powercap tree on disk; ``write`` brings its files up to the profiles' energy.

    Args:
        folder: where the zones are made.
        zones: label (``package-0``, ``dram``, ``psys`` …) and profile, by folder name (``intel-rapl:0`` …).
        range_uj: counters wrap around here.
        offset_uj: what the counters show at the profiles' beginning.
    """

    def __init__(
        self,
        folder: Path,
        zones: dict[str, tuple[str, PowerProfile]],
        *,
        range_uj: int = 262_143_328_850,
        offset_uj: Sequence[int] = (),
    ) -> None:
        self._folder, self._range = folder, range_uj
        self._profiles = {name: profile for name, (_, profile) in zones.items()}
        apart = accumulate([7_000_000] * len(zones))
        self._offsets = dict(zip(zones, offset_uj or apart, strict=True))
        for name, (label, _) in zones.items():
            (folder / name).mkdir(parents=True)
            (folder / name / "name").write_text(label + "\n")
            (folder / name / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.write()

    def write(self) -> None:
        """The counters as they stand now."""
        for name, profile in self._profiles.items():
            microjoules = self._offsets[name] + int(profile.joules() * 1e6)
            (self._folder / name / "energy_uj").write_text(f"{microjoules % self._range}\n")
