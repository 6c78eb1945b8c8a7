from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from agentic_compression.errors import CompressionError, ConfigurationError
from agentic_compression.evaluation.energy import CpuTimeCounter
from agentic_compression.evaluation.latency import energy_blocks, is_stable, latency_of, time_requests
from agentic_compression.evaluation.workload import build_workload, check_finite
from agentic_compression.records import EvaluationSettings
from agentic_compression.runtimes.transformers_runtime import TransformersRuntime

SETTINGS = EvaluationSettings(prompt_tokens=24, new_tokens=10, runs=4, warmup_runs=2)


def test_greedy_tokens_equal_generate(tiny: TransformersRuntime) -> None:
    workload = build_workload(tiny, SETTINGS)
    answer = workload.serve(tiny)
    with torch.inference_mode():
        expected = tiny.model.generate(
            input_ids=torch.tensor([workload.prompt]),
            do_sample=False,
            max_new_tokens=10,
            min_new_tokens=10,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 24:]
    assert len(workload.prompt) == 24
    assert answer.tokens == expected.tolist()
    assert len(answer.tokens) == 10
    assert 0 < answer.first_token_ms < answer.request_ms


def test_prompt_is_fixed_and_begins_with_bos(tiny: TransformersRuntime) -> None:
    first, second = build_workload(tiny, SETTINGS), build_workload(tiny, SETTINGS)
    assert first == second
    assert first.prompt[0] == 1
    assert not set(first.prompt[1:]) & set(tiny.tokenizer.all_special_ids)


def test_prompt_must_fit_the_context(tiny: TransformersRuntime) -> None:
    with pytest.raises(ConfigurationError, match="must fit the context of 96, got 100"):
        build_workload(tiny, EvaluationSettings(prompt_tokens=90, new_tokens=10))


def test_timed_runs_have_the_asked_number_and_add_up(tiny: TransformersRuntime) -> None:
    seen: list[tuple[str, int, int]] = []
    workload = build_workload(tiny, SETTINGS)
    runs = time_requests(tiny, workload, CpuTimeCounter(15.0), SETTINGS, lambda *report: seen.append(report))
    measured = latency_of(runs, SETTINGS, tiny)
    assert len(runs.request_ms) == len(runs.joules) == 4
    assert seen[-1] == ("latency", 4, 4)
    assert gc.isenabled()
    assert all(joules > 0 for joules in runs.joules)
    for request, first, token in zip(runs.request_ms, runs.ttft_ms, runs.decode_ms_per_token, strict=True):
        assert request == pytest.approx(first + 9 * token)
    assert measured.throughput_tokens_per_s == pytest.approx(10 / (measured.request_ms.value / 1e3))
    assert measured.request_ms.low <= measured.request_ms.value <= measured.request_ms.high
    assert measured.request_ms.value <= measured.request_p95_ms <= max(runs.request_ms)
    assert 2 <= measured.warmup_runs <= 12


def test_energy_blocks_divide_by_the_requests_served(tiny: TransformersRuntime) -> None:
    counter = CpuTimeCounter(15.0)
    counter.resolution_s = 0.003  # type: ignore[misc]
    blocks = energy_blocks(tiny, build_workload(tiny, SETTINGS), counter)
    assert len(blocks) == 5
    assert all(0 < joules < 15 for joules in blocks)


def test_warm_up_is_stable_when_two_windows_agree() -> None:
    assert not is_stable([10.0, 10.0, 10.0, 10.0, 10.0])
    assert is_stable([30.0, 10.0, 10.2, 10.0, 10.1, 10.3, 9.9])
    assert not is_stable([20.0, 20.0, 20.0, 10.0, 10.0, 10.0])


def test_nan_logits_are_refused_before_anything_is_timed(tiny_path: Path) -> None:
    broken = TransformersRuntime(tiny_path)
    broken.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match="logits must be finite"):
        check_finite(broken, [1, 2, 3])
