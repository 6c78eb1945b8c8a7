"""Latency of the fixed workload: time to first token, time between tokens, whole requests.

No timed request is left out, however slow: medians and their intervals do not follow a few outliers, the 95th
percentiles show them, and all samples are kept. Where too many differ, the measurement says that it is not stable.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from agentic_compression.evaluation.energy import EnergyCounter
from agentic_compression.evaluation.intervals import bootstrap_median, percentile
from agentic_compression.evaluation.workload import Workload
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Estimate, EvaluationSettings, LatencyMeasurement
from agentic_compression.runtimes import Runtime

__all__ = ["TimedRuns", "collector_off", "glance_at", "is_stable", "latency_of", "runs_agree", "time_requests"]

_WINDOW = 3
_TOLERANCE = 0.05
_WARMUP_FACTOR = 4
_WARMUP_SECONDS = 20.0
_AGREEMENT = 0.15
_RESAMPLES = 2000


@dataclass(frozen=True)
class TimedRuns:
    """Timed requests after the warm-up.

    Attributes:
        request_ms: of each whole request.
        ttft_ms: of each request to its first token.
        decode_ms_per_token: of each request, the mean over the tokens after the first.
        joules: of each request by the counter's deltas.
        warmup_runs: requests before the first timed one.
        gaps_ms: between the tokens of each request, ``(runs, new_tokens - 1)``; empty where the engine gives none.
        settled: whether the warm-up ended because the times agreed, not because it had lasted long enough.
    """

    request_ms: list[float]
    ttft_ms: list[float]
    decode_ms_per_token: list[float]
    joules: list[float]
    warmup_runs: int
    gaps_ms: list[list[float]] = field(default_factory=list)
    settled: bool = True


def time_requests(
    runtime: Runtime,
    workload: Workload,
    counter: EnergyCounter,
    settings: EvaluationSettings,
    progress: Progress = no_progress,
) -> TimedRuns:
    """Warm up until stable, then time ``settings.runs`` requests with the garbage collector off.

    Warm-up ends after at least ``warmup_runs`` requests, as soon as the median of the last three lies within
    5 % of the median of the three before; at the latest after four times ``warmup_runs`` (at least 12) or 20 s.
    """
    with collector_off():
        warmups, settled = _warm_up(runtime, workload, settings.warmup_runs)
        runs = _timed(runtime, workload, counter, settings.runs, progress)
    return replace(runs, warmup_runs=len(warmups), settled=settled)


def glance_at(runtime: Runtime, workload: Workload, counter: EnergyCounter, runs: int = 3) -> TimedRuns:
    """A few requests, cold: not a measurement of what a request takes, but it hardly takes less than the least."""
    with collector_off():
        return _timed(runtime, workload, counter, runs, no_progress)


def latency_of(runs: TimedRuns, settings: EvaluationSettings, runtime: Runtime) -> LatencyMeasurement:
    """The record: medians with bootstrap intervals, 95th percentiles, samples, tokens a second at the median."""
    request = bootstrap_median(runs.request_ms, settings.seed)
    gaps = [gap for row in runs.gaps_ms for gap in row]
    return LatencyMeasurement(
        request_ms=request,
        request_p95_ms=percentile(runs.request_ms, 95),
        ttft_ms=bootstrap_median(runs.ttft_ms, settings.seed),
        decode_ms_per_token=bootstrap_median(runs.decode_ms_per_token, settings.seed),
        throughput_tokens_per_s=settings.new_tokens / (request.value / 1e3),
        prompt_tokens=settings.prompt_tokens,
        new_tokens=settings.new_tokens,
        runs=len(runs.request_ms),
        warmup_runs=runs.warmup_runs,
        clock=runtime.clock,
        inter_token_ms=_median_gap(runs.gaps_ms, settings.seed) if gaps else None,
        inter_token_p95_ms=percentile(gaps, 95) if gaps else None,
        request_samples_ms=tuple(runs.request_ms),
        ttft_samples_ms=tuple(runs.ttft_ms),
        stable=runs.settled and runs_agree(runs.request_ms),
    )


def is_stable(milliseconds: Sequence[float]) -> bool:
    """Whether the medians of the last two windows of three agree within 5 %."""
    if len(milliseconds) < 2 * _WINDOW:
        return False
    last = statistics.median(milliseconds[-_WINDOW:])
    before = statistics.median(milliseconds[-2 * _WINDOW : -_WINDOW])
    return abs(last - before) <= _TOLERANCE * before


def runs_agree(milliseconds: Sequence[float]) -> bool:
    """Whether the middle half of the runs lies within 15 % of their median: not so where other work takes the cores."""
    quarter, median, three_quarters = (percentile(milliseconds, percent) for percent in (25, 50, 75))
    return three_quarters - quarter <= _AGREEMENT * median


def _timed(runtime: Runtime, workload: Workload, counter: EnergyCounter, runs: int, progress: Progress) -> TimedRuns:
    total, first, token, joules, gaps = [], [], [], [], []
    for run in range(runs):
        before = counter.joules()
        served = workload.serve(runtime)
        joules.append(counter.joules() - before)
        total.append(served.request_ms)
        first.append(served.first_token_ms)
        token.append((served.request_ms - served.first_token_ms) / (workload.new_tokens - 1))
        gaps.append([after - before for before, after in pairwise(served.token_ms)])
        progress("latency", run + 1, runs)
    whole = all(len(row) == workload.new_tokens - 1 for row in gaps)
    return TimedRuns(total, first, token, joules, 0, gaps if whole else [])


def _median_gap(gaps: Sequence[Sequence[float]], seed: int) -> Estimate:
    """Median over all gaps, ``(runs, gaps)``; whole runs are resampled, as the gaps of one depend on each other.

    Returns:
        The estimate, whose n counts runs.
    """
    rows = np.asarray(gaps, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(rows), size=(_RESAMPLES, len(rows)))
    medians = np.median(rows[picks].reshape(_RESAMPLES, -1), axis=1)
    low, high = (float(edge) for edge in np.percentile(medians, [2.5, 97.5]))
    value = float(np.median(rows))
    spread = float(rows.std(ddof=1)) if rows.size > 1 else 0.0
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=len(rows), spread=spread)


def _warm_up(runtime: Runtime, workload: Workload, least: int) -> tuple[list[float], bool]:
    """Milliseconds of the requests, and whether they ended because they agreed."""
    most, began = max(12, _WARMUP_FACTOR * least), time.perf_counter()
    times: list[float] = []
    while len(times) < most:
        times.append(workload.serve(runtime).request_ms)
        enough = len(times) >= least
        if enough and is_stable(times):
            return times, True
        if enough and time.perf_counter() - began > _WARMUP_SECONDS:
            break
    return times, False


@contextmanager
def collector_off() -> Iterator[None]:
    """Keep Python's garbage collector from running, as it would in the middle of a timed request."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
