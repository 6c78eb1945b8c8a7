"""The roofline by hand, and ceilings that are measured once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentic_compression.evaluation import roofline
from agentic_compression.evaluation.energy import CpuTimeCounter
from agentic_compression.evaluation.performance import measure_performance
from agentic_compression.evaluation.roofline import MachineCeilings, machine_ceilings, roofline_of
from agentic_compression.evaluation.workload import build_workload
from agentic_compression.records import EvaluationSettings
from agentic_compression.runtimes import TokenCost, machine_speed
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from agentic_compression.testing.records import make_evaluation


@pytest.fixture(autouse=True)
def _forget() -> None:
    roofline._measured.cache_clear()


def plant(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Rates that need no measuring; what was asked, and with how many of torch's threads."""
    asked: list[tuple[str, int]] = []

    def bandwidth(device: str) -> float:
        asked.append((f"memory {device}", torch.get_num_threads()))
        return 4e9

    def flops(dtype: str, device: str) -> float:
        asked.append((f"{dtype} {device}", torch.get_num_threads()))
        return 1e12

    monkeypatch.setattr(machine_speed, "reading_bandwidth", bandwidth)
    monkeypatch.setattr(machine_speed, "matrix_flops", flops)
    return asked


def test_rates_and_ratios_by_hand() -> None:
    class Runtime:
        def token_cost(self) -> TokenCost:
            return TokenCost(bytes_read=3_000_000, flops=8_000_000, head_flops=2_000_000, dtype="bfloat16")

    latency = make_evaluation(latency_ms=10.0).latency  # 2.5 ms to the first of 64 tokens, 0.5 ms a token
    runtime: Any = Runtime()
    found = roofline_of(runtime, latency, MachineCeilings("bfloat16", 4e9, 1e12))
    assert found.decode_bytes_per_s == pytest.approx(3e6 / 0.5e-3)
    assert found.of_bandwidth == pytest.approx(1.5)  # above 1, and not cut off
    assert found.prefill_flops_per_s == pytest.approx((64 * 6e6 + 2e6) / 2.5e-3)
    assert found.of_peak == pytest.approx(386e6 / 2.5e-3 / 1e12)
    assert (found.bytes_per_token, found.flops_per_token, found.dtype) == (3_000_000, 8_000_000, "bfloat16")


def test_ceilings_are_measured_once_with_their_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = plant(monkeypatch)
    before = torch.get_num_threads()
    first = machine_ceilings("cpu", 3, "float32", tmp_path)
    assert first == MachineCeilings("float32", 4e9, 1e12)
    assert asked == [("memory cpu", 3), ("float32 cpu", 3)]
    assert torch.get_num_threads() == before
    roofline._measured.cache_clear()  # as in another process
    assert machine_ceilings("cpu", 3, "float32", tmp_path) == first
    assert len(asked) == 2
    machine_ceilings("cpu", 3, "bfloat16", tmp_path)  # memory is read alike whatever the type
    machine_ceilings("cpu", 2, "float32", tmp_path)
    assert asked[2:] == [("bfloat16 cpu", 3), ("memory cpu", 2), ("float32 cpu", 2)]


def test_without_a_folder_they_hold_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plant(monkeypatch)
    assert machine_ceilings("cpu", 1, "float32") == machine_ceilings("cpu", 1, "float32")
    assert len(asked) == 2


@pytest.mark.parametrize("text", ["", "{", '{"of": "x", "per_second": 0}', '{"of": "x", "per_second": 1e999}'])
def test_a_damaged_file_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    plant(monkeypatch)
    good = machine_ceilings("cpu", 1, "float32", tmp_path)
    for file in tmp_path.iterdir():
        file.write_text(text)
    assert machine_ceilings("cpu", 1, "float32", tmp_path) == good
    assert all("per_second" in file.read_text() and file.read_text() != text for file in tmp_path.iterdir())


def test_one_call_measures_everything(
    monkeypatch: pytest.MonkeyPatch, tiny: TransformersRuntime, tmp_path: Path
) -> None:
    plant(monkeypatch)
    settings = EvaluationSettings(prompt_tokens=24, new_tokens=4, runs=3, warmup_runs=1, threads=1)
    seen: list[str] = []
    found = measure_performance(
        tiny,
        build_workload(tiny, settings),
        CpuTimeCounter(15.0),
        settings,
        lambda what, *_: seen.append(what),
        tmp_path,
    )
    cost, latency = tiny.token_cost(), found.latency
    assert [item.batch for item in found.throughput] == [1, 2, 4, 8]
    assert len(found.joules) == latency.runs == 3
    assert found.roofline.decode_bytes_per_s * latency.decode_ms_per_token.value / 1e3 == pytest.approx(cost.bytes_read)
    assert found.roofline.peak_flops_per_s == 1e12
    assert list(dict.fromkeys(seen)) == ["latency", "throughput", "roofline"]
