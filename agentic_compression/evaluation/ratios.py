"""Ratios of costs, candidate over baseline, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agentic_compression.records import Estimate, Evaluation, LatencyMeasurement

__all__ = ["cost_ratios", "ratio_of_estimates", "ratio_of_medians"]

_RESAMPLES = 10_000
_CELLS = 4_000_000


def cost_ratios(baseline: Evaluation, candidate: Evaluation, seed: int = 0) -> dict[str, Estimate]:
    """Latency, memory, size, energy and CO2 of the candidate over those of the baseline.

    Latencies from the stored requests where both have them, else, like energy and memory, from the two intervals.
    What is 0 on either side has no ratio and is left out.
    """
    size = float(candidate.size_bytes), float(baseline.size_bytes)
    found = {
        "latency_ms": _latency(baseline.latency, candidate.latency, seed),
        "ttft_ms": _first_token(baseline.latency, candidate.latency, seed),
        "memory_gb": ratio_of_estimates(baseline.memory.peak_growth_bytes, candidate.memory.peak_growth_bytes),
        "model_size_gb": Estimate(value=size[0] / size[1], low=size[0] / size[1], high=size[0] / size[1], n=1),
        "joules_per_request": ratio_of_estimates(
            baseline.energy.joules_per_request, candidate.energy.joules_per_request
        ),
        "co2_grams": ratio_of_estimates(
            baseline.energy.co2_grams_per_1000_requests, candidate.energy.co2_grams_per_1000_requests
        ),
    }
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def ratio_of_medians(baseline: Sequence[float], candidate: Sequence[float], seed: int = 0) -> Estimate:
    """Median of the candidate's times over that of the baseline's, both resampled 10,000 times (percentiles).

    Raises:
        ValueError: when a time is missing or not positive.
    """
    first, second = np.asarray(baseline, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if not len(first) or not len(second) or min(first.min(), second.min()) <= 0:
        raise ValueError(f"times must be positive, one or more of each, got {len(first)} and {len(second)}")
    generator = np.random.default_rng(seed)
    resampled = _medians(second, generator) / _medians(first, generator)
    value = float(np.median(second) / np.median(first))
    low, high = (float(edge) for edge in np.percentile(resampled, [2.5, 97.5]))
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=min(len(first), len(second)))


def ratio_of_estimates(baseline: Estimate, candidate: Estimate) -> Estimate | None:
    """A ratio from two independent estimates: their distances to the bounds, in logarithms, add as squares.

    The method of variance estimates recovery on a logarithmic scale (Zou & Donner, 2008). None where a value or a
    bound is not positive.
    """
    if min(baseline.low, baseline.value, candidate.low, candidate.value) <= 0:
        return None
    value = math.log(candidate.value / baseline.value)
    below = math.hypot(math.log(candidate.value / candidate.low), math.log(baseline.high / baseline.value))
    above = math.hypot(math.log(candidate.high / candidate.value), math.log(baseline.value / baseline.low))
    low, high = math.exp(value - below), math.exp(value + above)
    return Estimate(value=math.exp(value), low=low, high=high, n=min(baseline.n, candidate.n))


def _latency(baseline: LatencyMeasurement, candidate: LatencyMeasurement, seed: int) -> Estimate | None:
    if baseline.request_samples_ms and candidate.request_samples_ms:
        return ratio_of_medians(baseline.request_samples_ms, candidate.request_samples_ms, seed)
    return ratio_of_estimates(baseline.request_ms, candidate.request_ms)


def _first_token(baseline: LatencyMeasurement, candidate: LatencyMeasurement, seed: int) -> Estimate | None:
    if baseline.ttft_samples_ms and candidate.ttft_samples_ms:
        return ratio_of_medians(baseline.ttft_samples_ms, candidate.ttft_samples_ms, seed)
    return ratio_of_estimates(baseline.ttft_ms, candidate.ttft_ms)


def _medians(times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    rows = max(1, _CELLS // len(times))
    blocks = []
    for start in range(0, _RESAMPLES, rows):
        picks = generator.integers(0, len(times), size=(min(rows, _RESAMPLES - start), len(times)))
        blocks.append(np.median(times[picks], axis=1))
    return np.concatenate(blocks)
