"""Counters and meters against hardware whose true energy is known."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentic_compression.errors import UnavailableError
from agentic_compression.evaluation import energy
from agentic_compression.evaluation.energy import (
    CpuTimeCounter,
    EnergyMeter,
    NvmlCounter,
    NvmlPowerCounter,
    RaplCounter,
    WallTimeCounter,
    next_update,
    polled,
    select_counter,
)
from agentic_compression.testing.power import FakeNvml, FakeRapl, PowerProfile, SimulatedClock

LIMIT = 0.02
WATTS = st.floats(5, 700)


@pytest.fixture(autouse=True)
def no_gpu_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards are numbered as NVML does, whatever this machine sets."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)


def install(nvml: FakeNvml) -> None:
    sys.modules["pynvml"] = nvml  # type: ignore[assignment]  # taken out again by the fixture below


@pytest.fixture(autouse=True)
def restore_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def block(
    segments: list[tuple[float, float]], phase: float, idle: float, wait: float
) -> tuple[float, SimulatedClock, PowerProfile]:
    """A block after 0.3 s at ``idle`` watts: its segments, then ``wait`` watts. Returns its true energy."""
    clock = SimulatedClock()
    profile = PowerProfile(clock, idle)
    install(FakeNvml(clock, [profile], phase_s=phase))
    clock.sleep(0.3)
    with EnergyMeter(NvmlCounter(), aligned=True, idle_watts=idle, clock=clock) as meter:
        before = profile.joules()
        for seconds, watts in segments:
            profile.change(watts)
            clock.sleep(seconds)
        true = profile.joules() - before
        profile.change(wait)
    assert meter.reading.seconds == pytest.approx(sum(seconds for seconds, _ in segments))
    return abs(meter.reading.joules - true) / true, clock, profile


SEGMENTS = st.lists(st.tuples(st.floats(0.003, 1.5), WATTS), min_size=1, max_size=25)


@settings(deadline=None, max_examples=150)
@given(segments=SEGMENTS, phase=st.floats(0, 0.1), share=st.floats(0, 1))
def test_two_seconds_are_exact_enough_when_the_gpu_falls_back_to_idle(
    segments: list[tuple[float, float]], phase: float, share: float
) -> None:
    total = sum(seconds for seconds, _ in segments)
    segments = [*segments, (max(0.0, 2.0 - total), segments[-1][1])]
    lowest = min(watts for _, watts in segments)
    error, _, _ = block(segments, phase, idle=share * lowest, wait=share * lowest)
    assert error <= LIMIT


@settings(deadline=None, max_examples=150)
@given(segments=SEGMENTS, phase=st.floats(0, 0.1), idle=st.floats(0, 1), wait=st.just(0.0) | st.floats(0.02, 1))
def test_six_seconds_are_exact_enough_whatever_the_power_after_the_block(
    segments: list[tuple[float, float]], phase: float, idle: float, wait: float
) -> None:
    total = sum(seconds for seconds, _ in segments)
    segments = [*segments, (max(0.0, 6.0 - total), segments[-1][1])]
    mean = sum(seconds * watts for seconds, watts in segments) / sum(seconds for seconds, _ in segments)
    error, _, _ = block(segments, phase, idle=idle * mean, wait=wait * mean)
    assert error <= LIMIT


def test_a_short_block_read_anywhere_is_wrong_and_alignment_is_what_mends_it() -> None:
    clock = SimulatedClock()
    profile = PowerProfile(clock, 60.0)
    install(FakeNvml(clock, [profile], phase_s=0.01))
    clock.sleep(0.3)
    readings = {}
    for aligned in (False, True):
        profile.change(60.0)
        with EnergyMeter(NvmlCounter(), aligned=aligned, idle_watts=60.0, clock=clock) as meter:
            profile.change(400.0)
            clock.sleep(0.08)
            profile.change(60.0)
        readings[aligned] = meter.reading.joules
        clock.sleep(0.5)
    assert readings[True] == pytest.approx(0.08 * 400, rel=LIMIT)
    assert readings[False] != pytest.approx(0.08 * 400, rel=0.1)


@settings(deadline=None, max_examples=60)
@given(
    powers=st.lists(WATTS, min_size=1, max_size=4),
    waits=st.lists(st.floats(0, 0.3), min_size=1, max_size=30),
)
def test_counters_never_go_down_and_several_boards_are_the_sum_of_each(powers: list[float], waits: list[float]) -> None:
    clock = SimulatedClock()
    boards = [PowerProfile(clock, watts) for watts in powers]
    install(FakeNvml(clock, boards))
    whole, parts = NvmlCounter(*range(len(powers))), [NvmlCounter(index) for index in range(len(powers))]
    last = whole.joules()
    for wait in waits:
        clock.sleep(wait)
        now = whole.joules()
        assert now >= last
        assert now == pytest.approx(sum(part.joules() for part in parts))
        last = now
    assert last <= sum(board.joules() for board in boards) + 1e-6


def test_next_update_is_the_true_energy_of_its_moment_and_a_dead_counter_does_not_hang() -> None:
    clock = SimulatedClock()
    profile = PowerProfile(clock, 150.0)
    install(FakeNvml(clock, [profile], phase_s=0.037))
    clock.sleep(0.5)
    joules, at = next_update(NvmlCounter(), clock)
    assert at == pytest.approx(0.537, abs=0.0021)
    assert joules == pytest.approx(profile.joules(0.537), abs=1e-3)
    install(FakeNvml(clock, [PowerProfile(clock, 0.0)]))
    began = clock.now()
    assert next_update(NvmlCounter(), clock)[0] == 0.0
    assert clock.now() - began == pytest.approx(0.5, abs=0.01)


@settings(deadline=None, max_examples=60)
@given(segments=st.lists(st.tuples(st.floats(2, 4), st.floats(10, 300)), min_size=1, max_size=5))
def test_power_samples_of_an_old_board_add_up(segments: list[tuple[float, float]]) -> None:
    clock = SimulatedClock()
    profile = PowerProfile(clock, segments[0][1])
    install(FakeNvml(clock, [profile], counter=False))
    with pytest.raises(UnavailableError, match="Not Supported"):
        NvmlCounter()
    counter = NvmlPowerCounter(clock=clock.now)
    before, last = profile.joules(), 0.0
    for seconds, watts in segments:
        profile.change(watts)
        end = clock.now() + seconds
        while clock.now() < end:
            clock.sleep(0.02)
            now = counter.joules()
            assert now >= last
            last = now
    assert last == pytest.approx(profile.joules() - before, rel=LIMIT)
    assert counter.source == "measured"
    assert "sampled" in counter.method


def test_a_meter_samples_by_itself() -> None:
    class Counter(CpuTimeCounter):
        poll_s = 0.001
        reads = 0

        def joules(self) -> float:
            self.reads += 1
            return 0.0

    import time

    counter = Counter(1.0)
    with EnergyMeter(counter):
        while counter.reads < 10:  # the test's own time limit ends it when nothing reads
            time.sleep(0.001)
    with polled(counter):
        pass
    reads = counter.reads
    time.sleep(0.02)
    assert counter.reads == reads


def test_boards_are_found_by_the_names_that_cuda_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedClock()
    nvml = FakeNvml(clock, [PowerProfile(clock, watts) for watts in (10.0, 20.0, 40.0, 80.0)])
    install(nvml)
    clock.sleep(1.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1")
    assert NvmlCounter(0).joules() == pytest.approx(80)
    assert NvmlCounter(1).joules() == pytest.approx(20)
    assert NvmlCounter(0, 1).joules() == pytest.approx(100)
    assert "2 GPU boards" in NvmlCounter(0, 1).method
    assert select_counter("cuda:0,1", 15.0).joules() == pytest.approx(100)


def test_slices_of_one_board_count_it_once_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedClock()
    nvml = FakeNvml(clock, [PowerProfile(clock, 70.0)])
    nvml.slices = {"MIG-a": 0, "MIG-b": 0}
    install(nvml)
    clock.sleep(1.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    counter = NvmlCounter(0, 1)
    assert counter.joules() == pytest.approx(70)
    assert "MIG: other slices included" in counter.method


def test_every_counter_that_is_not_hardware_is_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RaplCounter.__init__, "__defaults__", (tmp_path,))
    cpu = select_counter("cpu", 15.0)
    assert cpu.source == "estimated"
    assert "no RAPL counter below" in cpu.reason
    gpu = select_counter("cuda", 15.0)
    assert gpu.source == "estimated"
    assert "GPU's energy is NOT included: set ACF_GPU_WATTS" in gpu.reason
    figure = select_counter("cuda", 15.0, gpu_watts=300.0)
    assert (figure.source, type(figure)) == ("estimated", WallTimeCounter)
    assert "300 W of a busy GPU" in figure.method


def test_a_gpu_without_a_counter_is_not_measured_by_the_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedClock()
    FakeRapl(tmp_path, {"intel-rapl:0": ("package-0", PowerProfile(clock, 50.0))})
    monkeypatch.setattr(RaplCounter.__init__, "__defaults__", (tmp_path,))
    assert select_counter("cpu", 15.0).source == "measured"
    assert select_counter("cuda", 15.0).source == "estimated"


def test_wall_time_is_seconds_times_watts() -> None:
    clock = SimulatedClock()
    with EnergyMeter(WallTimeCounter(250.0, clock=clock.now), clock=clock) as meter:
        clock.sleep(4.0)
    assert meter.reading.joules == pytest.approx(1000.0)


SMALL = 50_000_000  # wraps after 50 J


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    powers=st.lists(st.floats(0, 200), min_size=1, max_size=3),
    waits=st.lists(st.floats(0, 0.2), min_size=1, max_size=25),
    offset=st.integers(0, SMALL - 1),
)
def test_rapl_packages_add_up_through_every_wrap(
    tmp_path_factory: pytest.TempPathFactory, powers: list[float], waits: list[float], offset: int
) -> None:
    folder, clock = tmp_path_factory.mktemp("powercap"), SimulatedClock()
    packages = [PowerProfile(clock, watts) for watts in powers]
    zones = {f"intel-rapl:{index}": (f"package-{index}", profile) for index, profile in enumerate(packages)}
    apart = [(offset + index * 5_000_000) % SMALL for index in range(len(packages))]
    tree = FakeRapl(folder, zones, range_uj=SMALL, offset_uj=apart)
    counter, last = RaplCounter(folder), 0.0
    for wait in waits:
        clock.sleep(wait)
        tree.write()
        now = counter.joules()
        assert now >= last
        last = now
    assert last == pytest.approx(sum(profile.joules() for profile in packages), abs=len(powers) * 2e-6)


def test_rapl_counts_every_joule_once(tmp_path: Path) -> None:
    clock = SimulatedClock()
    first, second, memory = PowerProfile(clock, 60.0), PowerProfile(clock, 40.0), PowerProfile(clock, 8.0)
    tree = FakeRapl(
        tmp_path,
        {
            "intel-rapl:0": ("package-0", first),
            "intel-rapl:0:0": ("core", PowerProfile(clock, 45.0)),
            "intel-rapl:0:1": ("uncore", PowerProfile(clock, 5.0)),
            "intel-rapl:0:2": ("dram", memory),
            "intel-rapl:1": ("package-1", second),
            "intel-rapl:2": ("psys", PowerProfile(clock, 150.0)),
            "intel-rapl-mmio:0": ("package-0", first),
        },
    )
    counter = RaplCounter(tmp_path)
    clock.sleep(10.0)
    tree.write()
    assert counter.joules() == pytest.approx(600 + 400 + 80)
    assert "intel-rapl:0, intel-rapl:0:2, intel-rapl:1)" in counter.method


def test_rapl_dies_that_show_one_sockets_counter_are_one(tmp_path: Path) -> None:
    clock = SimulatedClock()
    socket = PowerProfile(clock, 100.0)
    zones = {f"intel-rapl:{die}": (f"package-0-die-{die}", socket) for die in range(4)}
    tree = FakeRapl(tmp_path, zones, offset_uj=[9_000_000_000 + 400 * die for die in range(4)])
    counter = RaplCounter(tmp_path)
    clock.sleep(3.0)
    tree.write()
    assert counter.joules() == pytest.approx(300.0)


@pytest.mark.parametrize("broken", ["energy_uj", "max_energy_range_uj"])
def test_rapl_refuses_a_sum_that_would_miss_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    clock = SimulatedClock()
    tree = FakeRapl(
        tmp_path,
        {f"intel-rapl:{index}": (f"package-{index}", PowerProfile(clock, 50.0)) for index in range(2)},
    )
    (tmp_path / "intel-rapl:1" / broken).write_text("")
    with pytest.raises(UnavailableError, match=rf"no readable RAPL counter: .*intel-rapl:1/{broken}.*as root"):
        RaplCounter(tmp_path)
    monkeypatch.setattr(RaplCounter.__init__, "__defaults__", (tmp_path,))
    counter = select_counter("cpu", 15.0)
    assert counter.source == "estimated"
    assert broken in counter.reason
    tree.write()


def test_rapl_that_becomes_unreadable_says_so(tmp_path: Path) -> None:
    clock = SimulatedClock()
    FakeRapl(tmp_path, {"intel-rapl:0": ("package-0", PowerProfile(clock, 50.0))})
    counter = RaplCounter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(UnavailableError, match="energy_uj"):
        counter.joules()


def test_rapl_is_unavailable_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no RAPL counter below"):
        RaplCounter(tmp_path)


def test_automatic_choice_takes_the_gpu_where_torch_could_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedClock()
    install(FakeNvml(clock, [PowerProfile(clock, 30.0)]))
    monkeypatch.setattr(energy, "_torch_is_cpu_only", lambda: False)
    assert isinstance(select_counter("auto", 15.0), NvmlCounter)
    install(FakeNvml(clock, [PowerProfile(clock, 30.0)], counter=False))
    assert isinstance(select_counter("auto", 15.0), NvmlPowerCounter)
    assert isinstance(select_counter("cpu", 15.0), RaplCounter | CpuTimeCounter)
