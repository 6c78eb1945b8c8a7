"""Several requests at once: tokens a second of reading prompts and of writing answers, by batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

from agentic_compression.evaluation.latency import collector_off
from agentic_compression.evaluation.workload import Workload
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Throughput
from agentic_compression.resident_memory import free_bytes
from agentic_compression.runtimes import Runtime, TimedBatch

__all__ = ["BATCHES", "measure_throughput", "prompts_of", "throughput_of"]

BATCHES = (1, 2, 4, 8)
_MOST_RUNS = 20
_LONGEST_S = 10.0


def measure_throughput(
    runtime: Runtime,
    workload: Workload,
    batches: Sequence[int] = BATCHES,
    budget_s: float = 0.2,
    progress: Progress = no_progress,
) -> tuple[Throughput, ...]:
    """Serve the workload for several requests at once, each with a prompt of its own.

    Args:
        runtime: warmed up.
        workload: of one request.
        batches: requests at once, ascending.
        budget_s: seconds a batch size takes, its warm-up included; one timed run is made however long it takes. A
            first run longer than the budget is not repeated: it is itself the reading.
        progress: told after every batch size.

    Returns:
        One record a batch size. The list ends early at the first size that memory does not hold, and where twice the
        time of the last run would exceed ten seconds.
    """
    found: list[Throughput] = []
    with collector_off():
        for done, batch in enumerate(batches, start=1):
            try:
                _check_room(runtime, workload, batch)
                runs = list(_timed_runs(runtime, prompts_of(workload, batch), workload.new_tokens, budget_s))
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                break
            found.append(throughput_of(runs, len(workload.prompt), workload.new_tokens))
            progress("throughput", done, len(batches))
            if 2 * runs[-1].request_ms / 1e3 > _LONGEST_S:
                break
    return tuple(found)


def throughput_of(runs: Sequence[TimedBatch], prompt_tokens: int, new_tokens: int) -> Throughput:
    """The record of equal batches: rates at the median time, the first answer token counted with the prefill."""
    batch = len(runs[0].tokens)
    prefill = [run.prefill_ms for run in runs]
    decode = [run.request_ms - run.prefill_ms for run in runs]
    return Throughput(
        batch=batch,
        prefill_tokens_per_s=batch * prompt_tokens / (statistics.median(prefill) / 1e3),
        decode_tokens_per_s=batch * (new_tokens - 1) / (statistics.median(decode) / 1e3),
        prefill_samples_ms=tuple(prefill),
        decode_samples_ms=tuple(decode),
    )


def prompts_of(workload: Workload, batch: int) -> list[list[int]]:
    """The workload's prompt, its tokens after the first rotated by one more for each request, so that none are equal
    and no engine can serve them as one.
    """
    first, rest = list(workload.prompt[:1]), list(workload.prompt[1:])
    shifts = [shift % max(1, len(rest)) for shift in range(batch)]
    return [first + rest[shift:] + rest[:shift] for shift in shifts]


def _timed_runs(runtime: Runtime, prompts: list[list[int]], new_tokens: int, budget_s: float) -> Iterator[TimedBatch]:
    began = time.perf_counter()
    run = runtime.time_batch(prompts, new_tokens)
    if time.perf_counter() - began > budget_s:
        yield run
        return
    for _ in range(_MOST_RUNS):
        yield runtime.time_batch(prompts, new_tokens)
        if time.perf_counter() - began > budget_s:
            return


def _check_room(runtime: Runtime, workload: Workload, batch: int) -> None:
    """Refuse what the cache alone would not fit: a process that the kernel kills for memory reports nothing.

    Raises:
        MemoryError: with both figures.
    """
    cache = runtime.cache_bytes(len(workload.prompt) + workload.new_tokens)
    if cache is not None and batch * cache > (free := free_bytes(runtime.device)):
        raise MemoryError(f"the cache of {batch} requests takes {batch * cache:,} bytes, got {free:,} free")


def _is_out_of_memory(error: Exception) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
