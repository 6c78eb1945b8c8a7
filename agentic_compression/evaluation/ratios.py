"""Ratios of costs, candidate over baseline, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agentic_compression.evaluation.intervals import resamples
from agentic_compression.records import Estimate, Evaluation

__all__ = ["cost_ratios", "ratio_of_estimates", "ratio_of_medians"]

_RESAMPLES = 10_000


def cost_ratios(baseline: Evaluation, candidate: Evaluation, seed: int = 0) -> dict[str, Estimate]:
    """Latency, memory, size, energy and CO2 of the candidate over those of the baseline.

    Latencies from the stored requests where both have them, else, like energy and memory, from the two intervals.
    What is 0 on either side has no ratio and is left out.
    """
    first, second = baseline.latency, candidate.latency
    found = {
        "latency_ms": _of_times(
            (first.request_samples_ms, second.request_samples_ms), (first.request_ms, second.request_ms), seed
        ),
        "ttft_ms": _of_times((first.ttft_samples_ms, second.ttft_samples_ms), (first.ttft_ms, second.ttft_ms), seed),
        "memory_gb": ratio_of_estimates(baseline.memory.peak_growth_bytes, candidate.memory.peak_growth_bytes),
        "model_size_gb": ratio_of_estimates(_exactly(baseline.size_bytes), _exactly(candidate.size_bytes)),
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
    bound is not a positive, finite number.
    """
    if not all(0 < edge < math.inf for item in (baseline, candidate) for edge in (item.low, item.value, item.high)):
        return None
    value = candidate.value / baseline.value
    below = math.hypot(math.log(candidate.value / candidate.low), math.log(baseline.high / baseline.value))
    above = math.hypot(math.log(candidate.high / candidate.value), math.log(baseline.value / baseline.low))
    return Estimate(
        value=value, low=value * math.exp(-below), high=value * math.exp(above), n=min(baseline.n, candidate.n)
    )


def _of_times(
    samples: tuple[Sequence[float], Sequence[float]], medians: tuple[Estimate, Estimate], seed: int
) -> Estimate | None:
    """From the stored times, baseline's first, where both have them and none is 0; else from the two medians."""
    if all(times and min(times) > 0 for times in samples):
        return ratio_of_medians(*samples, seed)
    return ratio_of_estimates(*medians)


def _exactly(count: int) -> Estimate:
    return Estimate(value=count, low=count, high=count, n=1)


def _medians(times: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    blocks = resamples(len(times), _RESAMPLES, generator)
    return np.concatenate([np.median(times[picks], axis=1) for picks in blocks])
