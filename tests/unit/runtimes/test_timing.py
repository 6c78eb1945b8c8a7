"""Timed requests and batches: the same answers as one at a time, and times that add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agentic_compression.errors import UsageError
from agentic_compression.runtimes.llama_cpp import LlamaCppRuntime
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
from agentic_compression.runtimes.transformers_timing import serve_greedy

PROMPTS = [[0, *range(first, first + 30)] for first in (2, 40, 80, 120, 160)]


@pytest.mark.parametrize("engine", ["dense", "exact"])
def test_a_batch_answers_as_its_requests_do(engine: str, request: pytest.FixtureRequest) -> None:
    runtime: Any = request.getfixturevalue(engine)
    together = runtime.time_batch(PROMPTS, 9)
    alone = [runtime.time_request(prompt, 9) for prompt in PROMPTS]
    assert together.tokens == [served.tokens for served in alone]
    assert 0 < together.prefill_ms < together.request_ms
    for served in alone:
        assert len(served.token_ms) == 9
        assert list(served.token_ms) == sorted(served.token_ms)
        assert (served.token_ms[0], served.token_ms[-1]) == (served.first_token_ms, served.request_ms)


@pytest.mark.parametrize("engine", ["dense", "exact"])
def test_wrong_batches_are_refused(engine: str, request: pytest.FixtureRequest) -> None:
    runtime: Any = request.getfixturevalue(engine)
    with pytest.raises(UsageError, match=r"must have one length, got \[2, 3\]"):
        runtime.time_batch([[0, 1], [0, 1, 2]], 4)
    with pytest.raises(UsageError, match="got no prompt"):
        runtime.time_batch([], 4)
    with pytest.raises(UsageError, match="must fit the model's context of 512"):
        runtime.time_batch([[0] * 510] * 2, 4)


def test_llama_cpp_has_so_many_sequences(exact: LlamaCppRuntime) -> None:
    with pytest.raises(UsageError, match="at most 128 prompts, got 129"):
        exact.time_batch([[0, 1]] * 129, 2)


def test_every_token_is_marked_once_and_only_once(dense: TransformersRuntime) -> None:
    class Ticks:
        def __init__(self) -> None:
            self.now, self.settled = 0, False

        def mark(self) -> int:
            self.now += 1
            return self.now

        def settle(self) -> None:
            self.settled = True

        def milliseconds(self, first: int, second: int) -> float:
            assert self.settled
            return float(second - first)

    answers, times = serve_greedy(dense.model, PROMPTS[:2], 6, {}, Ticks())
    assert times == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert [len(answer) for answer in answers] == [6, 6]


def test_threads_are_pinned(dense_path: Any, half_path: Any) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        TransformersRuntime(dense_path, threads=1).close()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    runtime = LlamaCppRuntime(half_path, threads=1)
    runtime.time_request([0, 1, 2], 2)
    runtime.time_batch([[0, 1, 2]], 2)
    assert {context.options.threads for context in runtime._contexts.values()} == {1}
    runtime.close()
