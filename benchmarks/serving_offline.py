"""The engine without a server: the scheduler alone, and the runtime's ``time_batch``."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.serving_clients import SAMPLING, make_prompt

__all__ = ["offline", "print_offline"]


def offline(folder: Path, requests: int, new_tokens: int, seconds: float, threads: int) -> tuple[float, float]:
    """Tokens a second of the scheduler and of the runtime, in a fresh process; half of the seconds each."""
    command = [sys.executable, "-m", "benchmarks.serving", str(folder), "--offline", str(requests)]
    command += ["--new-tokens", str(new_tokens), "--seconds", str(seconds), "--threads", str(threads)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(words[-2]), float(words[-1])


def print_offline(folder: Path, requests: int, new_tokens: int, seconds: float, threads: int) -> None:
    """What :func:`offline` starts."""
    asked = (folder, requests, new_tokens, seconds / 2, threads)
    print(_run_scheduler(*asked), _run_runtime(*asked))


def _run_runtime(folder: Path, requests: int, new_tokens: int, seconds: float, threads: int) -> float:
    """Equal requests at once, greedily, without making text."""
    from agentic_compression.runtimes import open_runtime

    runtime = open_runtime(folder, threads=threads)
    prompts = [list(runtime.tokenizer(make_prompt(0))["input_ids"])] * requests
    runtime.time_batch(prompts, 4)
    rates, begun = [], time.perf_counter()
    while time.perf_counter() - begun < seconds or len(rates) < 3:
        rates.append(requests * new_tokens / runtime.time_batch(prompts, new_tokens).request_ms * 1e3)
    runtime.close()
    return statistics.median(rates)


def _run_scheduler(folder: Path, requests: int, new_tokens: int, seconds: float, threads: int) -> float:
    """The clients' requests in one process, a new one for each that ended: no sockets, no JSON."""
    from agentic_compression.runtimes import GenerationOptions
    from agentic_compression.runtimes.sampling import TextStream
    from agentic_compression.serving.batching import Job, Scheduler
    from agentic_compression.serving.engine import EngineOptions
    from agentic_compression.serving.loading import load_model

    model = load_model(folder, EngineOptions(slots=requests, threads=threads))
    done = 0

    def told(events: list[dict[str, Any]], running: int, waiting: int) -> None:
        nonlocal done
        for event in events:
            done += 1
            if event.get("finish"):
                submit()

    def submit() -> None:
        seed = random.randrange(1 << 30)
        prompt = list(model.tokenizer(make_prompt(seed))["input_ids"])
        options = GenerationOptions(new_tokens, seed=seed, **SAMPLING)
        scheduler.submit(Job(0, prompt, options, TextStream(model.tokenizer, ()), model.ends))

    scheduler = Scheduler(model.slots, model.tokenizer, told)
    for _ in range(requests):
        submit()
    for _ in range(20):
        scheduler.step()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        scheduler.step()
    return done / (time.perf_counter() - begun)
