from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.errors import CompressionError, ConfigurationError
from agentic_compression.evaluation.energy import CpuTimeCounter
from agentic_compression.evaluation.latency import is_stable, latency_of, runs_agree, time_requests
from agentic_compression.evaluation.workload import Workload, build_workload, check_finite
from agentic_compression.records import EvaluationSettings
from agentic_compression.runtimes import TimedRequest
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime

SETTINGS = EvaluationSettings(prompt_tokens=24, new_tokens=10, runs=4, warmup_runs=2)


def test_greedy_tokens_equal_generate(tiny: TransformersRuntime) -> None:
    workload = build_workload(tiny, SETTINGS)
    answer = workload.serve(tiny)
    with torch.inference_mode():
        expected = tiny.model.generate(
            input_ids=torch.tensor([workload.prompt]),
            do_sample=False,
            max_new_tokens=10,
            min_new_tokens=10,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 24:]
    assert len(workload.prompt) == 24
    assert answer.tokens == expected.tolist()
    assert len(answer.tokens) == 10
    assert 0 < answer.first_token_ms < answer.request_ms


def test_prompt_is_fixed_and_begins_with_bos(tiny: TransformersRuntime) -> None:
    first, second = build_workload(tiny, SETTINGS), build_workload(tiny, SETTINGS)
    assert first == second
    assert first.prompt[0] == 1
    assert not set(first.prompt[1:]) & set(tiny.tokenizer.all_special_ids)


def test_prompt_must_fit_the_context(tiny: TransformersRuntime) -> None:
    with pytest.raises(ConfigurationError, match="must fit the context of 96, got 100"):
        build_workload(tiny, EvaluationSettings(prompt_tokens=90, new_tokens=10))


def test_timed_runs_have_the_asked_number_and_add_up(tiny: TransformersRuntime) -> None:
    seen: list[tuple[str, int, int]] = []
    workload = build_workload(tiny, SETTINGS)
    runs = time_requests(tiny, workload, CpuTimeCounter(15.0), SETTINGS, lambda *report: seen.append(report))
    measured = latency_of(runs, SETTINGS, tiny)
    assert len(runs.request_ms) == len(runs.joules) == 4
    assert seen[-1] == ("latency", 4, 4)
    assert gc.isenabled()
    assert all(joules > 0 for joules in runs.joules)
    for request, first, token in zip(runs.request_ms, runs.ttft_ms, runs.decode_ms_per_token, strict=True):
        assert request == pytest.approx(first + 9 * token)
    assert measured.throughput_tokens_per_s == pytest.approx(10 / (measured.request_ms.value / 1e3))
    assert measured.request_ms.low <= measured.request_ms.value <= measured.request_ms.high
    assert measured.request_ms.value <= measured.request_p95_ms <= max(runs.request_ms)
    assert 2 <= measured.warmup_runs <= 12


def test_warm_up_is_stable_when_two_windows_agree() -> None:
    assert not is_stable([10.0, 10.0, 10.0, 10.0, 10.0])
    assert is_stable([30.0, 10.0, 10.2, 10.0, 10.1, 10.3, 9.9])
    assert not is_stable([20.0, 20.0, 20.0, 10.0, 10.0, 10.0])


def test_nan_logits_are_refused_before_anything_is_timed(tiny_path: Path) -> None:
    broken = TransformersRuntime(tiny_path)
    broken.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match="logits must be finite"):
        check_finite(broken, [1, 2, 3])


class Planted:
    """Serves requests whose times are given: one list a request, the prefill and then every gap between tokens."""

    clock = "perf_counter"

    def __init__(self, steps: Sequence[Sequence[float]]) -> None:
        self.steps, self.served = [list(row) for row in steps], 0

    def time_request(self, prompt: Sequence[int], new_tokens: int) -> TimedRequest:
        times = tuple(accumulate(self.steps[min(self.served, len(self.steps) - 1)]))
        self.served += 1
        return TimedRequest([0] * new_tokens, times[0], times[-1], times)


def measure(steps: Sequence[Sequence[float]], runs: int, least: int = 1) -> tuple[Any, Planted]:
    runtime: Any = Planted(steps)
    settings = EvaluationSettings(prompt_tokens=2, new_tokens=len(steps[0]), runs=runs, warmup_runs=least)
    workload = Workload(prompt=(1, 2), new_tokens=len(steps[0]))
    return latency_of(time_requests(runtime, workload, CpuTimeCounter(15.0), settings), settings, runtime), runtime


def test_statistics_of_known_times() -> None:
    warm = [[4.0, 1.0, 1.0, 1.0]] * 6
    generator = np.random.default_rng(0)
    timed = np.concatenate([generator.uniform(4, 5, (9, 1)), generator.uniform(1, 2, (9, 3))], axis=1)
    measured, runtime = measure([*warm, *timed.tolist()], runs=9)
    assert (measured.warmup_runs, runtime.served) == (6, 15)
    assert measured.request_samples_ms == pytest.approx(timed.sum(axis=1).tolist())
    assert measured.ttft_samples_ms == pytest.approx(timed[:, 0].tolist())
    assert measured.request_ms.value == pytest.approx(np.median(timed.sum(axis=1)))
    assert measured.ttft_ms.value == pytest.approx(np.median(timed[:, 0]))
    assert measured.decode_ms_per_token.value == pytest.approx(np.median(timed[:, 1:].mean(axis=1)))
    gaps = np.diff(np.cumsum(timed, axis=1), axis=1)
    assert measured.inter_token_ms.value == pytest.approx(np.median(gaps))
    assert measured.inter_token_p95_ms == pytest.approx(np.percentile(gaps, 95))
    assert measured.inter_token_ms.n == 9
    assert measured.inter_token_ms.low < measured.inter_token_ms.value < measured.inter_token_ms.high
    assert measured.stable


def test_gaps_are_resampled_by_request() -> None:
    """Gaps that are equal within a request tell no more than one of them, however many there are."""
    levels = [1.0 + 0.01 * number for number in range(8)]
    few, _ = measure([[4.0, 1.0]] * 6 + [[4.0, level] for level in levels], runs=8)
    many, _ = measure([[4.0] + [1.0] * 50] * 6 + [[4.0] + [level] * 50 for level in levels], runs=8)
    for side in ("value", "low", "high"):
        assert getattr(many.inter_token_ms, side) == pytest.approx(getattr(few.inter_token_ms, side))


def test_an_outlier_stays_in_the_samples_and_moves_no_median() -> None:
    steps = [[4.0, 1.0, 1.0]] * 17 + [[400.0, 1.0, 100.0]]
    measured, _ = measure(steps, runs=12)
    assert max(measured.request_samples_ms) == pytest.approx(501)
    assert measured.request_ms.value == pytest.approx(6)
    assert measured.stable


def test_runs_that_disagree_are_not_stable() -> None:
    measured, _ = measure([[4.0, 1.0]] * 6 + [[4.0, 1.0], [8.0, 2.0]] * 6, runs=12)
    assert not measured.stable
    assert runs_agree([10.0] * 9 + [11.0] * 3)
    assert not runs_agree([10.0] * 6 + [12.0] * 6)


def test_a_warm_up_that_never_settles_ends_and_is_not_stable() -> None:
    falling = [[float(2**power), 1.0] for power in range(40, 10, -1)]
    measured, runtime = measure([*falling[:12], *[[4.0, 1.0]] * 3], runs=3, least=2)
    assert measured.warmup_runs == 12
    assert runtime.served == 15
    assert not measured.stable


def test_an_engine_without_token_times_has_no_gaps() -> None:
    class Plain(Planted):
        def time_request(self, prompt: Sequence[int], new_tokens: int) -> TimedRequest:
            return TimedRequest([0] * new_tokens, 4.0, 6.0)

    runtime: Any = Plain([[4.0, 1.0, 1.0]])
    settings = EvaluationSettings(prompt_tokens=2, new_tokens=3, runs=3)
    workload = Workload(prompt=(1, 2), new_tokens=3)
    measured = latency_of(time_requests(runtime, workload, CpuTimeCounter(15.0), settings), settings, runtime)
    assert measured.inter_token_ms is None
    assert measured.inter_token_p95_ms is None
    assert measured.decode_ms_per_token.value == 1.0


@hypothesis.settings(deadline=None)
@given(st.lists(st.floats(0.1, 1000), min_size=1, max_size=40), st.integers(1, 8), st.floats(0.1, 1000))
def test_the_warm_up_ends_where_its_rule_says(times: list[float], least: int, last: float) -> None:
    """At the first place, from ``least`` on, where two windows of three agree within 5 %; else at the limit."""
    sequence = [*times, *[last] * 60]
    limit = max(12, 4 * least)
    settled = [
        count
        for count in range(max(6, least), limit + 1)
        if abs(statistics.median(sequence[count - 3 : count]) - statistics.median(sequence[count - 6 : count - 3]))
        <= 0.05 * statistics.median(sequence[count - 6 : count - 3])
    ]
    runtime: Any = Planted([[time / 2, time / 2] for time in sequence])
    settings = EvaluationSettings(prompt_tokens=2, new_tokens=2, runs=3, warmup_runs=least)
    runs = time_requests(runtime, Workload(prompt=(1, 2), new_tokens=2), CpuTimeCounter(15.0), settings)
    assert runs.warmup_runs == (settled[0] if settled else limit)
    assert runs.settled == bool(settled)


@hypothesis.settings(deadline=None)
@given(st.lists(st.floats(0.1, 1000), min_size=6, max_size=30), st.floats(0.01, 100))
def test_stability_knows_no_unit_and_looks_at_six_requests(times: list[float], factor: float) -> None:
    assert is_stable(times) == is_stable(times[-6:])
    assert is_stable([5.0] * 3 + times[-1:] * 3 if abs(times[-1] - 5) < 0.24 else [5.0] * 6)
    scaled = 2.0 ** round(np.log2(factor))  # exact in binary
    assert is_stable(times) == is_stable([scaled * value for value in times])
