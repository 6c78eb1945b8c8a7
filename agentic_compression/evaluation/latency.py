"""Latency of the fixed workload: time to first token, time a token, whole requests."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from agentic_compression.evaluation.energy import EnergyCounter
from agentic_compression.evaluation.intervals import bootstrap_median, percentile
from agentic_compression.evaluation.workload import Workload
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import EvaluationSettings, LatencyMeasurement
from agentic_compression.runtimes import Runtime

__all__ = ["TimedRuns", "energy_blocks", "is_stable", "latency_of", "time_requests"]

_WINDOW = 3
_TOLERANCE = 0.05
_WARMUP_FACTOR = 4
_WARMUP_SECONDS = 20.0
_BLOCKS = 5


@dataclass(frozen=True)
class TimedRuns:
    """Timed requests after the warm-up: milliseconds a run, and joules a run by the counter's deltas."""

    request_ms: list[float]
    ttft_ms: list[float]
    decode_ms_per_token: list[float]
    joules: list[float]
    warmup_runs: int


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
    with _collector_off():
        warmups = _warm_up(runtime, workload, settings.warmup_runs)
        total, first, token, joules = [], [], [], []
        for run in range(settings.runs):
            before = counter.joules()
            served = workload.serve(runtime)
            joules.append(counter.joules() - before)
            total.append(served.request_ms)
            first.append(served.first_token_ms)
            token.append((served.request_ms - served.first_token_ms) / (workload.new_tokens - 1))
            progress("latency", run + 1, settings.runs)
    return TimedRuns(total, first, token, joules, len(warmups))


def latency_of(runs: TimedRuns, settings: EvaluationSettings, runtime: Runtime) -> LatencyMeasurement:
    """The record: medians with bootstrap intervals, the 95th percentile, tokens a second at the median."""
    request = bootstrap_median(runs.request_ms, settings.seed)
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
    )


def energy_blocks(runtime: Runtime, workload: Workload, counter: EnergyCounter) -> list[float]:
    """Joules a request over five blocks of requests, each ten updates of the counter long.

    For counters too coarse to resolve one request (NVML updates about every 0.1 s).
    """
    readings = []
    with _collector_off():
        for _ in range(_BLOCKS):
            requests, began, before = 0, time.perf_counter(), counter.joules()
            while requests == 0 or time.perf_counter() - began < 10 * counter.resolution_s:
                workload.serve(runtime)
                requests += 1
            readings.append((counter.joules() - before) / requests)
    return readings


def is_stable(milliseconds: list[float]) -> bool:
    """Whether the medians of the last two windows of three agree within 5 %."""
    if len(milliseconds) < 2 * _WINDOW:
        return False
    last = statistics.median(milliseconds[-_WINDOW:])
    before = statistics.median(milliseconds[-2 * _WINDOW : -_WINDOW])
    return abs(last - before) <= _TOLERANCE * before


def _warm_up(runtime: Runtime, workload: Workload, least: int) -> list[float]:
    most, began = max(12, _WARMUP_FACTOR * least), time.perf_counter()
    times: list[float] = []
    while len(times) < most:
        times.append(workload.serve(runtime).request_ms)
        enough = len(times) >= least
        if enough and (is_stable(times) or time.perf_counter() - began > _WARMUP_SECONDS):
            break
    return times


@contextmanager
def _collector_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
