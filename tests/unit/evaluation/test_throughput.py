"""Throughput of a planted engine whose times are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from agentic_compression.evaluation import throughput
from agentic_compression.evaluation.throughput import measure_throughput, prompts_of
from agentic_compression.evaluation.workload import Workload, build_workload
from agentic_compression.records import EvaluationSettings
from agentic_compression.runtimes import TimedBatch
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime

WORKLOAD = Workload(prompt=(1, *range(10, 19)), new_tokens=5)


class Planted:
    """Says 20 ms of prefill and 8 ms of decoding a request; memory ends at ``most`` requests."""

    device = "cpu"

    def __init__(self, most: int = 99, error: type[Exception] = MemoryError, cache: int | None = 0) -> None:
        self.most, self.error, self.cache, self.asked = most, error, cache, list[list[list[int]]]()

    def cache_bytes(self, tokens: int) -> int | None:
        assert tokens == 15
        return self.cache

    def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedBatch:
        self.asked.append([list(prompt) for prompt in prompts])
        if len(prompts) > self.most:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        rows = len(prompts)
        return TimedBatch([[0] * new_tokens] * rows, 20.0 * rows, 28.0 * rows)


def measure(runtime: Any, **changes: Any) -> tuple[Any, ...]:
    return measure_throughput(runtime, WORKLOAD, **{"batches": (1, 2, 4), "budget_s": 0.0, **changes})


def test_rates_are_tokens_over_time() -> None:
    seen: list[tuple[str, int, int]] = []
    found = measure(Planted(), progress=lambda *report: seen.append(report))
    assert [item.batch for item in found] == [1, 2, 4]
    for item in found:
        assert item.prefill_tokens_per_s == pytest.approx(10 / 0.020)
        assert item.decode_tokens_per_s == pytest.approx(4 / 0.008)
        assert item.decode_samples_ms == (8.0 * item.batch,)
        assert item.prefill_samples_ms == (20.0 * item.batch,)
    assert seen == [("throughput", 1, 3), ("throughput", 2, 3), ("throughput", 3, 3)]


def test_a_warm_up_is_not_counted_where_there_is_time_for_it() -> None:
    runtime = Planted()
    (found,) = measure(runtime, batches=(2,), budget_s=60.0)
    assert len(found.decode_samples_ms) == len(runtime.asked) - 1 == 20


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, torch.OutOfMemoryError])
def test_running_out_of_memory_ends_the_list(error: type[Exception]) -> None:
    runtime = Planted(most=2, error=error)
    assert [item.batch for item in measure(runtime)] == [1, 2]
    assert len(runtime.asked[-1]) == 4


def test_other_errors_are_raised() -> None:
    class Broken(Planted):
        def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedBatch:
            raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        measure(Broken())


def test_a_cache_that_cannot_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "free_bytes", lambda _: 3000)
    runtime = Planted(cache=1000)
    assert [item.batch for item in measure(runtime)] == [1, 2]
    assert max(len(prompts) for prompts in runtime.asked) == 2
    assert len(measure(Planted(cache=None))) == 3


def test_slow_batches_end_the_list() -> None:
    class Slow(Planted):
        def time_batch(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> TimedBatch:
            return TimedBatch([[0] * new_tokens] * len(prompts), 1.0, 3000.0 * len(prompts))

    assert [item.batch for item in measure(Slow())] == [1, 2]


def test_every_request_has_a_prompt_of_its_own() -> None:
    prompts = prompts_of(WORKLOAD, 8)
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert all(prompt[0] == 1 and sorted(prompt) == sorted(WORKLOAD.prompt) for prompt in prompts)
    assert prompts[0] == list(WORKLOAD.prompt)


def test_a_real_model(tiny: TransformersRuntime) -> None:
    workload = build_workload(tiny, EvaluationSettings(prompt_tokens=24, new_tokens=6))
    found = measure_throughput(tiny, workload, batches=(1, 3), budget_s=0.01)
    assert [item.batch for item in found] == [1, 3]
    assert all(item.prefill_tokens_per_s > 0 and item.decode_tokens_per_s > 0 for item in found)
