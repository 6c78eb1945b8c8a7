"""Measure one checkpoint, in full or as far up the rungs as it gets.

Meant to be called once in a fresh process, before anything computed there (see ``memory_in_waiting``). With a screening
plan the candidate climbs the rungs first (see ``rungs``); what is measured on the way is part of the evaluation and
not measured again. A candidate that stands on the search side when it is finished is asked the report side at once, by
the same process with the same loaded model; latency, memory, size and energy do not depend on the items.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from agentic_compression.checkpoints.llama_library import supports_gpu
from agentic_compression.errors import AcfError
from agentic_compression.evaluation.contest import Contest
from agentic_compression.evaluation.energy import EnergyMeter, select_counter
from agentic_compression.evaluation.environment import describe_environment, resolve_device, resolve_threads
from agentic_compression.evaluation.intact import check_intact
from agentic_compression.evaluation.measuring import Measuring, measure_perplexity
from agentic_compression.evaluation.memory import MemoryProbe
from agentic_compression.evaluation.memory_in_waiting import MemoryInWaiting
from agentic_compression.evaluation.quality import combine
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.evaluation.rungs import Screened, screen
from agentic_compression.evaluation.store import (
    evaluation_key,
    read_evaluation,
    read_report,
    store_evaluation,
    store_report,
)
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Environment, Estimate, Evaluation, EvaluationOutcome, Report, Rung, RungReading
from agentic_compression.runtimes import open_runtime, runtime_kind

__all__ = ["evaluate", "measure_perplexity", "resolve", "start_torch"]


def evaluate(request: EvaluationRequest, progress: Progress = no_progress) -> EvaluationOutcome:
    """Everything measured on one checkpoint, or the reason there is nothing.

    Args:
        request: checkpoint, items, settings, and what the rungs decide on.
        progress: told about every repetition and batch.

    Returns:
        ``succeeded`` with the evaluation (``cached`` when nothing had to be measured), ``rejected`` by a rung with the
        numbers that decided, or ``failed`` with one line when the model or the data is at fault.

    Raises:
        MemoryError: when memory runs out (``torch.OutOfMemoryError`` on a GPU), for the supervisor to record.
    """
    started = time.perf_counter()
    meter = None
    try:
        device, threads = resolve(request)
        key = evaluation_key(request, device, threads)
        known = _known(request, key) if request.reuse else None
        if known is not None:
            return known.model_copy(update={"seconds": time.perf_counter() - started})
        with EnergyMeter(select_counter(device, request.cpu_watts_per_core, gpu_watts=request.gpu_watts)) as meter:
            outcome = _measure(request, key, device, threads, meter, progress)
    except (AcfError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        if not isinstance(error, AcfError):
            raise
        outcome = EvaluationOutcome(status="failed", error=str(error))
    joules = meter.reading.joules if meter else 0.0
    return outcome.model_copy(update={"seconds": time.perf_counter() - started, "joules": joules})


def resolve(request: EvaluationRequest) -> tuple[str, int]:
    """Device and threads: with ``auto``, a GPU only when the checkpoint's engine can use it."""
    setting = request.settings.device
    if setting == "auto" and runtime_kind(request.checkpoint.path) == "llama.cpp" and not supports_gpu():
        setting = "cpu"
    return resolve_device(setting), resolve_threads(request.settings)


def _known(request: EvaluationRequest, key: str) -> EvaluationOutcome | None:
    """What is stored, when that is all that is wanted."""
    evaluation = read_evaluation(request.store_root, key)
    if evaluation is None:
        return None
    wanted = _wants_report(request, evaluation)
    report = read_report(request.store_root, key) if wanted else None
    if wanted and report is None:
        return None
    return _succeeded(request, evaluation, report, Screened()).model_copy(update={"cached": True})


def _measure(
    request: EvaluationRequest, key: str, device: str, threads: int, meter: EnergyMeter, progress: Progress
) -> EvaluationOutcome:
    began = time.perf_counter()
    check_intact(request.checkpoint)
    with _loaded(request, device, threads, progress) as (measuring, engine):
        load_seconds = time.perf_counter() - began
        evaluation = read_evaluation(request.store_root, key) if request.reuse else None
        screened = Screened()
        if evaluation is None:
            if request.screening is not None:
                weights = {task.name: task.weight for task in request.dataset.tasks}
                seed = request.settings.seed
                screened = screen(request.screening, measuring, measuring.items(), weights, seed)
                if screened.rejection is not None:
                    return EvaluationOutcome(
                        status="rejected",
                        error=screened.rejection,
                        screening=tuple(screened.readings),
                        load_seconds=load_seconds,
                    )
            environment = describe_environment(device, threads, engine)
            evaluation = _evaluation(request, measuring, meter, environment)
            store_evaluation(request.store_root, key, evaluation)
        if request.screening is not None and request.teacher is None:
            measuring.teach()
        report = None
        if _wants_report(request, evaluation):
            report = measuring.report()
            store_report(request.store_root, key, report)
    succeeded = _succeeded(request, evaluation, report, screened)
    return succeeded.model_copy(update={"load_seconds": load_seconds})


@contextmanager
def _loaded(
    request: EvaluationRequest, device: str, threads: int, progress: Progress
) -> Iterator[tuple[Measuring, str]]:
    """The loaded checkpoint under measurement, and what runs it."""
    settings = request.settings
    probe = MemoryProbe(path=request.checkpoint.path, device=device, threads=threads, settings=settings)
    with MemoryInWaiting(probe, request.memory_repeats) as memory:
        start_torch(threads, settings.seed)
        progress("load", 0, 1)
        with closing(open_runtime(request.checkpoint.path, device, threads)) as runtime:
            yield Measuring(runtime, request, memory, progress), runtime.name


def _evaluation(
    request: EvaluationRequest, measuring: Measuring, meter: EnergyMeter, environment: Environment
) -> Evaluation:
    """All measurements; those taken on the way up the rungs are not taken again."""
    memory, latency, serving = measuring.memory(), measuring.latency(), measuring.serving()
    scores = measuring.scores(request.split)
    perplexity, divergence = measuring.perplexity(), measuring.divergence()
    spent = meter.so_far()
    return Evaluation(
        checkpoint_digest=request.checkpoint.digest,
        accuracy=combine(scores, request.dataset),
        benchmarks=scores,
        perplexity=perplexity,
        latency=latency,
        memory=memory,
        energy=measuring.energy(spent.joules),
        size_bytes=request.checkpoint.size_bytes,
        environment=environment,
        settings=request.settings,
        wall_seconds=spent.seconds,
        split=request.split,
        divergence=divergence,
        throughput=serving.throughput,
        roofline=serving.roofline,
    )


def _wants_report(request: EvaluationRequest, evaluation: Evaluation) -> bool:
    """Whether it stands among its rivals on the search side; a baseline has none."""
    plan = request.screening
    if plan is None or request.split != "search":
        return False
    return Contest(plan.rivals, plan.least_gain).stands(evaluation.objectives)


def _succeeded(
    request: EvaluationRequest, evaluation: Evaluation, report: Report | None, screened: Screened
) -> EvaluationOutcome:
    readings = tuple(screened.readings)
    if request.screening is not None and not readings:
        readings = _known_readings(evaluation)
    return EvaluationOutcome(status="succeeded", evaluation=evaluation, screening=readings, report=report)


def _known_readings(evaluation: Evaluation) -> tuple[RungReading, ...]:
    """The readings of an evaluation that was known already."""
    weights = evaluation.memory.weights_bytes / 1e9
    known: dict[str, tuple[Rung, Estimate]] = {
        "weights_gb": (0, Estimate(value=weights, low=weights, high=weights, n=1))
    }
    if evaluation.divergence is not None:
        known["kl"] = (1, evaluation.divergence.kl)
    known["accuracy"] = (3, evaluation.accuracy)
    return tuple(
        RungReading(
            rung=rung,
            quantity=quantity,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            n=estimate.n,
            passed=True,
            reason="measured before",
        )
        for quantity, (rung, estimate) in known.items()
    )


def start_torch(threads: int, seed: int) -> None:
    """Threads and seed of this process."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
