"""Measure one checkpoint: memory, then latency and energy, then accuracy and perplexity.

Meant to be called once in a fresh process: memory is measured first, before this process computes anything.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from agentic_compression.checkpoints.llama_library import supports_gpu
from agentic_compression.errors import AcfError, ModelError
from agentic_compression.evaluation.energy import EnergyMeter, EnergyReading, select_counter
from agentic_compression.evaluation.environment import describe_environment, resolve_device, resolve_threads
from agentic_compression.evaluation.grid import GridFactor, grid_factor
from agentic_compression.evaluation.intervals import bootstrap_median
from agentic_compression.evaluation.language_modelling import (
    encode_documents,
    perplexity_of,
    read_texts,
    score_documents,
    within_budget,
)
from agentic_compression.evaluation.latency import energy_blocks, latency_of, time_requests
from agentic_compression.evaluation.memory import MemoryProbe, measure_memory
from agentic_compression.evaluation.quality import combine, score_tasks
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.evaluation.store import evaluation_key, read_evaluation, store_evaluation
from agentic_compression.evaluation.workload import build_workload, check_finite
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import (
    EnergyMeasurement,
    Estimate,
    Evaluation,
    EvaluationOutcome,
    LatencyMeasurement,
    Perplexity,
)
from agentic_compression.runtimes import Runtime, open_runtime, runtime_kind
from agentic_compression.storage import folder_bytes

__all__ = ["evaluate", "measure_perplexity", "resolve", "start_torch"]

_JOULES_PER_KWH = 3.6e6
_REQUESTS = 1000
_FINE_S = 1e-4


def evaluate(request: EvaluationRequest, progress: Progress = no_progress) -> EvaluationOutcome:
    """Everything measured on one checkpoint, or the reason there is nothing.

    Args:
        request: checkpoint, items and settings.
        progress: told about every repetition and batch.

    Returns:
        ``succeeded`` with the evaluation (``cached`` when it had been done before), or ``failed`` with one line
        when the model or the data is at fault.

    Raises:
        MemoryError: when memory runs out (``torch.OutOfMemoryError`` on a GPU), for the supervisor to record.
    """
    started = time.perf_counter()
    meter = None
    try:
        device, threads = resolve(request)
        key = evaluation_key(request, device, threads)
        stored = read_evaluation(request.store_root, key) if request.reuse else None
        if stored is not None:
            seconds = time.perf_counter() - started
            return EvaluationOutcome(status="succeeded", evaluation=stored, seconds=seconds, cached=True)
        with EnergyMeter(select_counter(device, request.cpu_watts_per_core)) as meter:
            evaluation = _measure(request, device, threads, meter, progress)
        store_evaluation(request.store_root, key, evaluation)
    except (AcfError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        if not isinstance(error, AcfError):
            raise
        joules = meter.reading.joules if meter else 0.0
        seconds = time.perf_counter() - started
        return EvaluationOutcome(status="failed", error=str(error), seconds=seconds, joules=joules)
    return EvaluationOutcome(
        status="succeeded",
        evaluation=evaluation,
        seconds=time.perf_counter() - started,
        joules=evaluation.energy.total_joules,
    )


def resolve(request: EvaluationRequest) -> tuple[str, int]:
    """Device and threads: with ``auto``, a GPU only when the checkpoint's engine can use it."""
    setting = request.settings.device
    if setting == "auto" and runtime_kind(request.checkpoint.path) == "llama.cpp" and not supports_gpu():
        setting = "cpu"
    return resolve_device(setting), resolve_threads(request.settings)


def _measure(
    request: EvaluationRequest, device: str, threads: int, meter: EnergyMeter, progress: Progress
) -> Evaluation:
    settings = request.settings
    grid = grid_factor(request.grid_country, request.grid_grams_per_kwh)
    _check_size(request)
    probe = MemoryProbe(path=request.checkpoint.path, device=device, threads=threads, settings=settings)
    memory = measure_memory(probe, request.memory_repeats, progress)
    start_torch(threads, settings.seed)
    progress("load", 0, 1)
    with closing(open_runtime(request.checkpoint.path, device, threads)) as runtime:
        name = runtime.name
        latency, joules, counter = _serve(runtime, request, progress)
        scores = score_tasks(runtime, request.dataset, settings, request.tasks_dir, progress)
        perplexity = measure_perplexity(runtime, request, progress)
    spent = meter.so_far()
    return Evaluation(
        checkpoint_digest=request.checkpoint.digest,
        accuracy=combine(scores, request.dataset),
        benchmarks=scores,
        perplexity=perplexity,
        latency=latency,
        memory=memory,
        energy=_energy(joules, counter, grid, spent.joules),
        size_bytes=request.checkpoint.size_bytes,
        environment=describe_environment(device, threads, name),
        settings=settings,
        wall_seconds=spent.seconds,
    )


def _check_size(request: EvaluationRequest) -> None:
    """The folder must hold what the reference says must be shipped; a user's folder may hold more."""
    folder, size = Path(request.checkpoint.path), request.checkpoint.size_bytes
    if not folder.is_dir():
        raise ModelError(f"checkpoint folder {folder} does not exist; rebuild it (acf rebuild STUDY EPISODE)")
    held = folder_bytes(folder)
    if held < size:
        raise ModelError(f"{folder} must hold the {size:,} bytes of its record, got {held:,}; rebuild the checkpoint")


def start_torch(threads: int, seed: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)


def _serve(
    runtime: Runtime, request: EvaluationRequest, progress: Progress
) -> tuple[LatencyMeasurement, list[float], EnergyReading]:
    """Latency, joules a request, and what kind of energy that is."""
    settings = request.settings
    workload = build_workload(runtime, settings)
    check_finite(runtime, workload.prompt)
    counter = select_counter(runtime.device, request.cpu_watts_per_core, tree=False)
    runs = time_requests(runtime, workload, counter, settings, progress)
    joules = runs.joules if counter.resolution_s < _FINE_S else energy_blocks(runtime, workload, counter)
    kind = EnergyReading(joules=sum(joules), seconds=0.0, source=counter.source, method=counter.method)
    return latency_of(runs, settings, runtime), joules, kind


def _energy(joules: list[float], kind: EnergyReading, grid: GridFactor, total: float) -> EnergyMeasurement:
    per_request = bootstrap_median(joules, seed=0)
    grams = _REQUESTS * grid.grams_per_kwh / _JOULES_PER_KWH
    return EnergyMeasurement(
        joules_per_request=per_request,
        co2_grams_per_1000_requests=_scaled(per_request, grams),
        source=kind.source,
        method=kind.method,
        grid_grams_per_kwh=grid.grams_per_kwh,
        grid_region=grid.region,
        total_joules=total,
    )


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(
        value=estimate.value * factor,
        low=estimate.low * factor,
        high=estimate.high * factor,
        n=estimate.n,
        spread=estimate.spread * factor,
    )


def measure_perplexity(runtime: Runtime, request: EvaluationRequest, progress: Progress) -> Perplexity | None:
    """Perplexity over the held-out text, or over a text task's own documents where there is no other."""
    dataset, settings = request.dataset, request.settings
    path = dataset.perplexity_path or next((task.path for task in dataset.tasks if task.kind == "text"), None)
    if path is None:
        return None
    windows = encode_documents(runtime, list(read_texts(path).values()))
    windows = within_budget(windows, settings.perplexity_tokens)
    if not windows:
        return None
    return perplexity_of(score_documents(runtime, windows, settings.batch_size, progress), settings.seed)
