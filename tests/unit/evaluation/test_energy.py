from __future__ import annotations

import subprocess
import sys
import time
from typing import Literal

import pytest

from agentic_compression.errors import UnavailableError
from agentic_compression.evaluation.energy import (
    CpuTimeCounter,
    EnergyMeter,
    NvmlCounter,
    tree_cpu_seconds,
)

BUSY = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


class FakeCounter:
    source: Literal["measured", "estimated"] = "measured"
    method = "fake"
    resolution_s = 0.0
    poll_s: float | None = None
    reason = ""

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
        while tree_cpu_seconds() - ended <= 0.1:  # the test's own limit ends it when the child is not counted
            time.sleep(0.05)
            assert live.poll() is None
    finally:
        live.kill()
        live.wait()


def test_nvml_counter_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:  # pynvml has camel-case names
        @staticmethod
        def nvmlInit() -> None:  # noqa: N802
            raise RuntimeError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", Broken)
    with pytest.raises(UnavailableError, match="GPU 0: driver not loaded"):
        NvmlCounter()
