from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from agentic_compression.errors import UnavailableError
from agentic_compression.evaluation import energy
from agentic_compression.evaluation.energy import (
    CpuTimeCounter,
    EnergyMeter,
    NvmlCounter,
    RaplCounter,
    select_counter,
    tree_cpu_seconds,
)

BUSY = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


class FakeCounter:
    source: Literal["measured", "estimated"] = "measured"
    method = "fake"
    resolution_s = 0.0

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def joules(self) -> float:
        return self._values.pop(0)


def test_meter_reports_the_difference_and_stands_after_the_block() -> None:
    with EnergyMeter(FakeCounter(10.0, 12.0, 17.5)) as meter:
        assert meter.reading.joules == pytest.approx(2.0)
    assert meter.reading.joules == pytest.approx(7.5)
    assert (meter.reading.source, meter.reading.method) == ("measured", "fake")


def test_meter_reads_after_an_error_in_the_block() -> None:
    meter = EnergyMeter(FakeCounter(1.0, 4.0))
    with pytest.raises(RuntimeError), meter:
        raise RuntimeError
    assert meter.reading.joules == pytest.approx(3.0)


def test_cpu_time_counter_multiplies_by_watts() -> None:
    assert CpuTimeCounter(15.0, clock=lambda: 2.0).joules() == pytest.approx(30.0)
    assert CpuTimeCounter(15.0).method == "CPU time x 15 W a core"


def test_sleeping_costs_nothing_and_computing_does() -> None:
    counter = CpuTimeCounter(10.0)
    with EnergyMeter(counter) as idle:
        time.sleep(0.1)
    with EnergyMeter(counter) as busy:
        exec(BUSY.format(seconds=0.1))
    assert idle.reading.joules < 0.2
    assert busy.reading.joules == pytest.approx(1.0, rel=0.2)


def test_tree_counts_children_that_live_and_children_that_ended() -> None:
    before = tree_cpu_seconds()
    subprocess.run([sys.executable, "-c", BUSY.format(seconds=0.3)], check=True)
    ended = tree_cpu_seconds()
    assert ended - before > 0.25
    live = subprocess.Popen([sys.executable, "-c", BUSY.format(seconds=30)])
    try:
        time.sleep(0.8)
        assert tree_cpu_seconds() - ended > 0.1
    finally:
        live.kill()
        live.wait()


def zone(folder: Path, name: str, label: str, microjoules: int) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    (path / "name").write_text(label + "\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text("1000000\n")
    return path


def test_rapl_sums_packages_and_dram_and_undoes_a_wrap(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    dram = zone(tmp_path, "intel-rapl:0:1", "dram", 100)
    zone(tmp_path, "intel-rapl:1", "psys", 7)
    counter = RaplCounter(tmp_path)
    (package / "energy_uj").write_text("100000")
    (dram / "energy_uj").write_text("50100")
    assert counter.joules() == pytest.approx((200_000 + 50_000) / 1e6)
    assert "intel-rapl:0:0" not in counter.method


def test_rapl_is_unavailable_where_nothing_is_readable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no readable RAPL"):
        RaplCounter(tmp_path)


def test_select_counter_falls_back_to_an_estimate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    monkeypatch.setattr(RaplCounter.__init__, "__defaults__", (tmp_path,))
    counter = select_counter("cpu", 15.0)
    assert counter.source == "estimated"


def test_nvml_counter_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:  # pynvml has camel-case names
        @staticmethod
        def nvmlInit() -> None:  # noqa: N802
            raise RuntimeError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", Broken)
    with pytest.raises(UnavailableError, match="GPU 0: driver not loaded"):
        NvmlCounter()


def test_nvml_counter_reads_millijoules_of_the_visible_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nvml:
        @staticmethod
        def nvmlInit() -> None: ...  # noqa: N802

        @staticmethod
        def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
            return index

        @staticmethod
        def nvmlDeviceGetHandleByUUID(uuid: str) -> str:  # noqa: N802
            return uuid

        @staticmethod
        def nvmlDeviceGetTotalEnergyConsumption(handle: Any) -> int:  # noqa: N802
            return {3: 5000, "GPU-b": 7000}[handle]

    monkeypatch.setitem(sys.modules, "pynvml", Nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-b")
    assert NvmlCounter(0).joules() == pytest.approx(5.0)
    assert NvmlCounter(1).joules() == pytest.approx(7.0)
    assert NvmlCounter(1).source == "measured"
