"""Energy of requests on simulated hardware, where the joules of one are known."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.evaluation.energy import CpuTimeCounter, EnergyCounter, NvmlCounter, RaplCounter
from agentic_compression.evaluation.energy_requests import (
    RequestEnergy,
    energy_blocks,
    energy_measurement,
    measure_energy,
    measure_idle,
)
from agentic_compression.evaluation.grid import grid_factor
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.evaluation.workload import Workload
from agentic_compression.records import CheckpointRef, DatasetSpec, DatasetTask, EnergyMeasurement, EvaluationSettings
from agentic_compression.runtimes import Runtime
from agentic_compression.testing.power import FakeNvml, FakeRapl, PowerProfile, SimulatedClock

WORKLOAD = Workload(prompt=(1, 2, 3), new_tokens=16)


class Server:
    """Serves a request in ``seconds`` at ``busy`` watts, then falls back to ``idle``."""

    def __init__(self, clock: SimulatedClock, profile: PowerProfile, seconds: float, busy: float, idle: float) -> None:
        self.clock, self.profile, self.seconds, self.busy, self.idle = clock, profile, seconds, busy, idle
        self.requests = 0

    def time_request(self, prompt: Any, new_tokens: int) -> None:
        assert not gc.isenabled()
        self.requests += 1
        self.profile.change(self.busy)
        self.clock.sleep(self.seconds)
        self.profile.change(self.idle)


@pytest.fixture(autouse=True)
def numbered_as_nvml_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "pynvml", None)


def gpu(seconds: float, busy: float, idle: float, phase: float = 0.013) -> tuple[Server, EnergyCounter]:
    clock = SimulatedClock()
    profile = PowerProfile(clock, idle)
    sys.modules["pynvml"] = FakeNvml(clock, [profile], phase_s=phase)  # type: ignore[assignment]
    clock.sleep(0.25)
    return Server(clock, profile, seconds, busy, idle), NvmlCounter()


def measured(server: Server, counter: EnergyCounter) -> RequestEnergy:
    return measure_energy(cast(Runtime, server), WORKLOAD, counter, [], server.clock)


@settings(deadline=None, max_examples=80)
@given(
    seconds=st.floats(0.004, 9),
    busy=st.floats(20, 700),
    share=st.floats(0.02, 1),
    phase=st.floats(0, 0.1),
)
def test_joules_a_request_are_the_true_ones(seconds: float, busy: float, share: float, phase: float) -> None:
    idle = share * busy
    server, counter = gpu(seconds, busy, idle, phase)
    energy = measured(server, counter)
    assert energy.joules == pytest.approx([busy * seconds] * len(energy.joules), rel=0.02)
    assert energy.idle is not None
    assert energy.idle.watts == pytest.approx(idle, rel=0.01)
    assert 2 <= len(energy.joules) <= 5
    # The whole is its parts: idle power for as long as a request lasts, and what lies above it.
    parts = [net + energy.idle.watts * seconds for net in energy.net_joules]
    assert parts == pytest.approx(list(energy.joules))


def test_blocks_are_five_of_two_seconds_and_fewer_where_requests_are_slow() -> None:
    server, counter = gpu(0.3, 200.0, 50.0)
    blocks = energy_blocks(cast(Runtime, server), WORKLOAD, counter, 50.0, server.clock)
    assert [block.requests for block in blocks] == [7] * 5
    slow, counter = gpu(40.0, 200.0, 50.0)
    blocks = energy_blocks(cast(Runtime, slow), WORKLOAD, counter, 50.0, slow.clock)
    assert [block.requests for block in blocks] == [1, 1]
    assert slow.requests == 2


def test_idle_waits_for_a_hot_gpu_to_settle_and_says_when_it_does_not() -> None:
    server, counter = gpu(0.1, 300.0, 60.0)
    server.profile.change(180.0)
    server.profile.change(120.0, server.clock.now() + 1.5)
    server.profile.change(60.0, server.clock.now() + 3.0)
    idle = measure_idle(counter, server.clock)
    assert idle is not None
    assert idle.settled
    assert idle.watts == pytest.approx(60.0, rel=0.05)
    for step in range(30):
        server.profile.change(100.0 + 80.0 * (step % 2), server.clock.now() + 1.02 * step)
    idle = measure_idle(counter, server.clock)
    assert idle is not None
    assert not idle.settled
    assert 8.0 <= idle.waited_s < 10.0


def test_estimates_have_no_idle_power_and_use_the_timed_requests() -> None:
    clock = SimulatedClock()
    counter = CpuTimeCounter(10.0, clock=clock.now, reason="no RAPL")
    assert measure_idle(counter, clock) is None
    server = Server(clock, PowerProfile(clock, 0.0), 1.0, 0.0, 0.0)
    energy = measure_energy(cast(Runtime, server), WORKLOAD, counter, [1.0, 2.0, 4.0], clock)
    assert (energy.joules, energy.net_joules, energy.idle, server.requests) == ((1.0, 2.0, 4.0), (), None, 0)


def test_rapl_measures_requests_with_the_rest_of_the_machine(tmp_path: Path) -> None:
    class WritingClock(SimulatedClock):
        tree: FakeRapl | None = None

        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.tree is not None:
                self.tree.write()

    clock = WritingClock()
    profile = PowerProfile(clock, 20.0)
    clock.tree = FakeRapl(tmp_path, {"intel-rapl:0": ("package-0", profile)}, range_uj=90_000_000)
    energy = measured(Server(clock, profile, 0.05, 80.0, 20.0), RaplCounter(tmp_path))
    assert energy.joules == pytest.approx([4.0] * 5, rel=0.02)
    assert energy.net_joules == pytest.approx([3.0] * 5, rel=0.03)


def record(energy: RequestEnergy, **settings: Any) -> EnergyMeasurement:
    task = DatasetTask(name="t", kind="text", path="/x", items=1, digest="d")
    request = EvaluationRequest(
        checkpoint=CheckpointRef(path="/x", digest="d", size_bytes=1, strategy_key="s"),
        dataset=DatasetSpec(dataset="n", name="n", digest="d", tasks=(task,)),
        settings=EvaluationSettings(new_tokens=20),
        store_root="/x",
        tasks_dir="/x",
        **settings,
    )
    grid = grid_factor(request.grid_country, request.grid_grams_per_kwh, request.grid_region)
    return energy_measurement(energy, request, grid, 5000.0)


def test_record_states_energy_carbon_and_cost_of_the_same_joules() -> None:
    server, counter = gpu(0.25, 360.0, 90.0)
    row = record(measured(server, counter), grid_region="US-CA", pue=1.2, price_per_kwh=0.3, currency="EUR")
    assert row.source == "measured"
    assert row.joules_per_request.value == pytest.approx(90.0, rel=0.02)
    assert row.joules_per_token == pytest.approx(row.joules_per_request.value / 20)
    # 1,000 requests x 90 J x 1.2 = 0.03 kWh at 394.769 lb/MWh (EPA eGRID 2023, California) and 0.30 EUR.
    assert row.co2_grams_per_1000_requests.value == pytest.approx(0.03 * 394.769 * 0.45359237, rel=0.02)
    assert row.cost_per_1000_requests == pytest.approx(0.009, rel=0.02)
    assert (row.currency, row.grid_region, row.grid_year, row.pue) == ("EUR", "US-CA", 2023, 1.2)
    assert (row.idle, row.idle_settled) == ("included", True)
    assert row.net_joules_per_request is not None
    assert row.net_joules_per_request.value == pytest.approx(67.5, rel=0.02)
    assert row.total_joules == 5000.0


def test_record_of_an_estimate_says_what_was_missing_and_states_no_cost_without_a_price() -> None:
    counter = CpuTimeCounter(15.0, reason="no RAPL counter")
    row = record(RequestEnergy(counter, (3.0, 1.0, 2.0)), grid_grams_per_kwh=100.0)
    assert (row.source, row.reason, row.idle) == ("estimated", "no RAPL counter", "not applicable")
    assert row.joules_per_request.value == np.median([3.0, 1.0, 2.0])
    assert (row.joules_per_request.low, row.joules_per_request.high) == (1.0, 3.0)
    assert row.co2_grams_per_1000_requests.high == pytest.approx(3000 / 3.6e6 * 100)
    assert (row.cost_per_1000_requests, row.price_per_kwh, row.currency) == (None, None, "")
    assert row.net_joules_per_request is None
    assert EnergyMeasurement.model_validate_json(row.model_dump_json()) == row
