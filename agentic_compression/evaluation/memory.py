"""Memory: how much a fresh process grows, at its peak, to load a checkpoint and serve one request.

Each repetition is a process of its own, forked before this process computes anything (an OpenMP runtime does
not survive a fork), or a child of a fresh interpreter where that is too late. In it:

1. a throwaway checkpoint of a few kilobytes is loaded and runs once, so that the runtime's own pages (libraries,
   loader, thread pools: some 45 MB that every candidate would pay alike) are in memory; it is a GGUF file when the
   candidate is one;
2. free heap is given back, the resident size is read, and the kernel's peak is reset (``/proc/self/clear_refs``);
3. the checkpoint is loaded and serves the latency workload once;
4. the peak (``VmHWM``) minus the size of step 2 is one observation. Pages of a memory-mapped weights file count
   as soon as they are touched, as they must: they have to be resident to serve.

The growth is also told apart: weights as loaded, keys and values of the workload, and the rest.

On a GPU the observation is the CUDA allocator's peak above its size before loading. Where the peak cannot be
reset (no ``/proc``) it is the process's lifetime peak minus the size before loading: an upper bound.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from agentic_compression.errors import CompressionError
from agentic_compression.evaluation.intervals import mean_estimate
from agentic_compression.evaluation.warm_up import warm_up
from agentic_compression.evaluation.workload import build_workload
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import EvaluationSettings, MemoryMeasurement, Record
from agentic_compression.resident_memory import give_back_heap, peak_bytes, reset_peak, resident_bytes
from agentic_compression.runtimes import open_runtime

__all__ = ["MemoryProbe", "Observation", "may_fork", "measure_memory", "memory_of", "observe", "observe_memory"]


class MemoryProbe(Record):
    """What one repetition loads and serves."""

    path: str
    device: str
    threads: int
    settings: EvaluationSettings


class Observation(Record):
    """One repetition, in bytes."""

    growth: int
    peak_rss: int
    weights: int
    device_peak: int | None = None
    cache_per_token: int | None = None
    cache: int | None = None
    peak_was_reset: bool = True


def measure_memory(probe: MemoryProbe, repeats: int, progress: Progress = no_progress) -> MemoryMeasurement:
    """Run the repetitions and put them together: mean, Student's t interval, the largest whole process.

    Raises:
        MemoryError: when a repetition ran out of memory.
        CompressionError: when a repetition failed; with its reason.
    """
    return memory_of(observe_memory(probe, repeats, progress))


def observe_memory(probe: MemoryProbe, repeats: int, progress: Progress = no_progress) -> list[Observation]:
    """The repetitions, each in a process of its own.

    Raises:
        MemoryError: when a repetition ran out of memory.
        CompressionError: when a repetition failed; with its reason.
    """
    if not may_fork():
        observations = _observe_in_new_interpreter(probe, repeats)
        progress("memory", repeats, repeats)
        return observations
    gc.freeze()  # the children then write to fewer shared pages
    observations = []
    for number in range(repeats):
        observations.append(_read_answer(_fork_and_observe(probe)))
        progress("memory", number + 1, repeats)
    return observations


def memory_of(observations: Sequence[Observation]) -> MemoryMeasurement:
    """The record: mean growth, the largest whole process, and what the mean growth is made of."""
    peaks = [item.device_peak for item in observations if item.device_peak is not None]
    growth = mean_estimate([item.growth for item in observations])
    weights, cache = max(item.weights for item in observations), observations[0].cache
    return MemoryMeasurement(
        peak_growth_bytes=growth,
        peak_rss_bytes=max(item.peak_rss for item in observations),
        weights_bytes=weights,
        device_peak_bytes=max(peaks) if peaks else None,
        kv_cache_bytes_per_token=observations[0].cache_per_token,
        kv_cache_bytes=cache,
        activation_bytes=None if cache is None else max(0, round(growth.value) - weights - cache),
    )


def observe(probe: MemoryProbe) -> Observation:
    """Steps 1 to 4 in this very process; meant for a fresh one."""
    warm_up(probe.path, probe.device, probe.threads)
    give_back_heap()
    before, was_reset = resident_bytes(), reset_peak()
    with closing(open_runtime(probe.path, probe.device, probe.threads)) as runtime:
        workload = build_workload(runtime, probe.settings)
        workload.serve(runtime)
        peak, use = peak_bytes(), runtime.memory()
        cache = runtime.cache_bytes(len(workload.prompt) + workload.new_tokens)
    return Observation(
        growth=max(0, peak - before) if use.device_peak_bytes is None else use.device_peak_bytes,
        peak_rss=peak,
        weights=use.weights_bytes,
        device_peak=use.device_peak_bytes,
        cache_per_token=use.cache_bytes_per_token,
        cache=cache,
        peak_was_reset=was_reset,
    )


def may_fork() -> bool:
    """Whether a fork is safe: one thread only, and CUDA not started."""
    torch = sys.modules.get("torch")
    if not hasattr(os, "fork") or (torch is not None and torch.cuda.is_initialized()):
        return False
    tasks = Path("/proc/self/task")
    return tasks.is_dir() and len(list(tasks.iterdir())) == 1


def _fork_and_observe(probe: MemoryProbe) -> str:
    """One repetition in a forked child; its answer as JSON, an error included."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(probe, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer:
        return answer
    kind = "MemoryError" if code == -signal.SIGKILL else "ChildProcessError"
    return json.dumps({"error": f"the process that loads the checkpoint ended with code {code}", "kind": kind})


def _answer(probe: MemoryProbe, writer: int) -> NoReturn:
    """The forked child: observe, write one JSON object, leave without running anybody's exit handlers."""
    code = 1
    try:
        answer: dict[str, Any] = observe(probe).model_dump()
        code = 0
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": str(error), "kind": type(error).__name__}
    try:
        os.write(writer, json.dumps(answer).encode()[:60_000])
    finally:
        os._exit(code)


def _observe_in_new_interpreter(probe: MemoryProbe, repeats: int) -> list[Observation]:
    """For a process that already computes with threads: a new interpreter imports torch once and forks."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "agentic_compression.evaluation.memory", str(repeats)],
        input=probe.model_dump_json(),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    lines = ran.stdout.splitlines()
    if len(lines) != repeats:
        raise CompressionError(f"measuring memory in a new interpreter failed: {ran.stderr.strip()[-500:]}")
    return [_read_answer(line) for line in lines]


def _read_answer(answer: str) -> Observation:
    values = json.loads(answer)
    if "error" in values:
        if values["kind"] in {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in values["error"]:
            raise MemoryError(values["error"])
        raise CompressionError(f"loading and serving the checkpoint failed: {values['kind']}: {values['error']}")
    return Observation.model_validate(values)


def _main() -> None:
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    probe = MemoryProbe.model_validate_json(sys.stdin.read())
    for _ in range(int(sys.argv[1])):
        print(_fork_and_observe(probe), flush=True)


if __name__ == "__main__":
    _main()
