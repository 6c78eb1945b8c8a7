"""Estimates of a strategy: how stages add up, what does not fit, and how far they were off."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentic_compression.errors import StrategyError
from agentic_compression.methods import Needs, Workload, describe_methods, get_method
from agentic_compression.methods.estimates import (
    Estimate,
    MachineRates,
    estimate,
    estimate_errors,
    infeasible_reason,
    measure_rates,
    stored_rates,
    workload_of,
)
from agentic_compression.records import CompressionOutcome, ModelSpec, SpecSource, StageTiming, Strategy

BILLION = Workload(
    parameters=1_104_218_112,
    linear_parameters=973_146_112,
    blocks=16,
    widest_input=8192,
    vocabulary=32_000,
    hidden=2048,
    weight_bytes=2_208_436_224,
    calibration_tokens=4096,
    threads=2,
)


def spec(**changes: object) -> ModelSpec:
    values: dict[str, object] = {
        "model": "m",
        "parameters": 1_104_218_112,
        "bytes_per_parameter": 2.0,
        "dtype": "bfloat16",
        "family": "llama",
        "layers": 16,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "heads": 32,
        "head_dim": 64,
        "vocabulary": 32_000,
        "tied_embeddings": False,
        "size_class": "medium",
        "sources": (SpecSource(source="local_checkpoint", parameters=1_104_218_112, exact=True),),
    }
    return ModelSpec.model_validate(values | changes)


def test_a_strategy_takes_all_seconds_and_the_largest_peak() -> None:
    first, second = Strategy.parse("magnitude:sparsity=0.5"), Strategy.parse("gptq:bits=4")
    both = estimate(Strategy(stages=(*first.stages, *second.stages)), BILLION)
    alone = [estimate(strategy, BILLION) for strategy in (first, second)]
    assert both.peak_bytes == max(one.peak_bytes for one in alone)
    overhead = estimate(Strategy.parse("rtn"), BILLION)
    known = [one.stages[0] for one in (*alone, overhead)]
    assert all(isinstance(needs, Needs) for needs in known)
    seconds = [needs.seconds for needs in known if needs is not None]
    shared = overhead.seconds - seconds[2]
    assert both.seconds == pytest.approx(shared + seconds[0] + seconds[1])
    assert estimate(Strategy(), BILLION) == Estimate(peak_bytes=0, seconds=0.0)


def test_weight_only_methods_stay_below_135_percent_of_the_checkpoint() -> None:
    for name in ("rtn", "rtn:least_error=true", "gptq", "gptq:bits=3,act_order=true"):
        assert BILLION.weight_bytes < estimate(Strategy.parse(name), BILLION).peak_bytes < 1.35 * BILLION.weight_bytes


def test_workload_is_read_from_the_specification() -> None:
    found = workload_of(spec(), calibration_tokens=4096, threads=2)
    assert found == BILLION
    tied = workload_of(spec(tied_embeddings=True))
    assert tied.linear_parameters == 1_104_218_112 - 32_000 * 2048
    bare = workload_of(
        spec(layers=None, hidden_size=None, intermediate_size=None, heads=None, head_dim=None, vocabulary=None)
    )
    assert 8 <= bare.blocks <= 40
    assert 1024 <= bare.hidden <= 4096
    assert bare.widest_input > bare.hidden


def test_reason_names_what_is_needed_and_what_is_free() -> None:
    expected = Estimate(peak_bytes=3_000_000_000, seconds=1.0)
    assert infeasible_reason(expected, free=4_000_000_000) is None
    assert infeasible_reason(Estimate(peak_bytes=1, seconds=0.0)) is None
    reason = infeasible_reason(expected, free=2_000_000_000)
    assert reason is not None
    assert "3.00 GB" in reason
    assert "2.00 GB are free" in reason
    assert infeasible_reason(Estimate(peak_bytes=1 << 60, seconds=0.0)) is not None


def test_slower_machines_and_busy_ones_take_longer() -> None:
    strategy = Strategy.parse("gptq")
    usual = estimate(strategy, BILLION).seconds
    assert estimate(strategy, BILLION, MachineRates(flops_per_second=1e10)).seconds > 1.5 * usual
    assert estimate(strategy, BILLION, busy_threads=1000).seconds > 2 * usual
    assert estimate(Strategy.parse("gptq:least_error=false"), BILLION).seconds < usual


def test_rates_are_measured_once_and_kept(tmp_path: Path) -> None:
    assert not stored_rates(tmp_path).measured
    rates = measure_rates(tmp_path)
    assert rates.measured
    assert 1e8 < rates.flops_per_second < 1e13
    assert stored_rates(tmp_path) == rates
    (tmp_path / "data" / "machine_rates.json").write_text("{broken")
    assert stored_rates(tmp_path) == MachineRates()


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(StrategyError, match="bits"):
        estimate(Strategy.parse("rtn:bits=5"), BILLION)


def test_every_estimate_is_positive_and_grows_with_the_model() -> None:
    small = workload_of(spec(parameters=3_800_000, layers=4, hidden_size=256, intermediate_size=768, vocabulary=4096))
    for description in describe_methods():
        needs = get_method(description.name).needs if description.available else None
        if needs is None:
            continue
        config = get_method(description.name).config()
        here, there = needs(small, config), needs(BILLION, config)
        assert small.weight_bytes <= here.peak_bytes < there.peak_bytes, description.name
        assert 0 <= here.seconds < there.seconds, description.name


def test_an_estimate_takes_milliseconds_and_no_torch() -> None:
    started = time.perf_counter()
    for _ in range(20):
        estimate(Strategy.parse("magnitude:sparsity=0.5 | gptq"), BILLION)
    assert (time.perf_counter() - started) / 20 < 0.05
    script = (
        "import sys; from agentic_compression.methods import Workload;"
        "from agentic_compression.records import Strategy;"
        "from agentic_compression.methods.estimates import estimate, infeasible_reason;"
        "w = Workload(10**6, 9*10**5, 2, 128, 256, 64, 2*10**6, calibration_tokens=999);"
        "infeasible_reason(estimate(Strategy.parse('rtn'), w)); estimate(Strategy.parse('gptq'), w);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_errors_are_medians_over_what_was_carried_out() -> None:
    def outcome(measured: int, expected: int | None, **changes: object) -> CompressionOutcome:
        values: dict[str, object] = {
            "status": "succeeded",
            "peak_bytes": measured,
            "estimated_peak_bytes": expected,
            "seconds": 2.0,
            "estimated_seconds": 1.0,
        }
        return CompressionOutcome.model_validate(values | changes)

    cached = StageTiming(stage="rtn", seconds=0.0, cached=True)
    found = estimate_errors(
        [
            outcome(100, 110),
            outcome(100, 80),
            outcome(100, 250),
            outcome(100, 10**9, cached=True),
            outcome(100, 10**9, stages=(cached,)),
            outcome(100, 10**9, status="oom"),
            outcome(0, 10**9, estimated_seconds=None),
        ]
    )
    assert found is not None
    assert found.outcomes == 3
    assert found.peak_bytes == pytest.approx(0.2)
    assert found.seconds == pytest.approx(0.5)
    assert estimate_errors([]) is None
