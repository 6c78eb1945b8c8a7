"""Speed of a loaded checkpoint: latency, throughput and how near both come to the machine's ceilings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agentic_compression.evaluation.energy import EnergyCounter
from agentic_compression.evaluation.environment import resolve_threads
from agentic_compression.evaluation.latency import latency_of, time_requests
from agentic_compression.evaluation.roofline import machine_ceilings, roofline_of
from agentic_compression.evaluation.throughput import measure_throughput
from agentic_compression.evaluation.workload import Workload
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import EvaluationSettings, LatencyMeasurement, Roofline, Throughput
from agentic_compression.runtimes import Runtime

__all__ = ["Performance", "Serving", "measure_performance", "measure_serving"]


@dataclass(frozen=True)
class Serving:
    """Several requests at once, and how near one request comes to the machine's ceilings."""

    throughput: tuple[Throughput, ...]
    roofline: Roofline


@dataclass(frozen=True)
class Performance:
    """What was measured, and joules of each timed request by the counter's deltas."""

    latency: LatencyMeasurement
    throughput: tuple[Throughput, ...]
    roofline: Roofline
    joules: list[float]


def measure_performance(
    runtime: Runtime,
    workload: Workload,
    counter: EnergyCounter,
    settings: EvaluationSettings,
    progress: Progress = no_progress,
    ceilings: Path | None = None,
) -> Performance:
    """Latency first, then what ``measure_serving`` gives.

    Args:
        runtime: nothing else is being served by it.
        workload: the fixed request.
        counter: of energy.
        settings: number of runs and threads.
        progress: told of ``latency``, ``throughput`` and ``roofline``.
        ceilings: folder that keeps the machine's ceilings between processes.
    """
    runs = time_requests(runtime, workload, counter, settings, progress)
    latency = latency_of(runs, settings, runtime)
    serving = measure_serving(runtime, workload, latency, settings, progress, ceilings)
    return Performance(latency, serving.throughput, serving.roofline, runs.joules)


def measure_serving(
    runtime: Runtime,
    workload: Workload,
    latency: LatencyMeasurement,
    settings: EvaluationSettings,
    progress: Progress = no_progress,
    ceilings: Path | None = None,
) -> Serving:
    """Throughput by batch size, and the roofline of a latency that was measured before.

    Args:
        runtime: warmed up; nothing else is being served by it.
        workload: the fixed request.
        latency: of that request on this runtime.
        settings: number of threads.
        progress: told of ``throughput`` and ``roofline``.
        ceilings: folder that keeps the machine's ceilings between processes.
    """
    throughput = measure_throughput(runtime, workload, progress=progress)
    known = machine_ceilings(runtime.device, resolve_threads(settings), runtime.token_cost().dtype, ceilings)
    roofline = roofline_of(runtime, latency, known)
    progress("roofline", 1, 1)
    return Serving(throughput, roofline)
