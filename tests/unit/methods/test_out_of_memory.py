"""Stages that run out of memory: one more try with half the batch, then an error that says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agentic_compression.checkpoints import load_checkpoint, read_manifest
from agentic_compression.errors import CompressionError
from agentic_compression.methods import Compressed, CompressionContext, CompressionRequest, compress, registry
from agentic_compression.methods.out_of_memory import is_out_of_memory, memory_errors
from agentic_compression.records import Strategy
from tests.unit.methods.tiny_models import logits, save_tiny, write_text


def too_much() -> None:
    """What torch's CPU allocator itself raises."""
    torch.empty(1 << 60, dtype=torch.int8)


def no_memory() -> None:
    raise MemoryError


def wrapped() -> None:
    try:
        too_much()
    except RuntimeError as error:
        raise CompressionError("a method's own words") from error


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_text(tmp_path / "text.jsonl")
    return save_tiny(tmp_path / "model")


def fail_first(
    monkeypatch: pytest.MonkeyPatch, name: str, times: int, failure: Callable[[], None]
) -> list[CompressionContext]:
    """Let a method change the model and then run out of memory, so many times; returns its contexts."""
    methods, broken = registry._load()
    real = methods[name]
    contexts: list[CompressionContext] = []

    def apply(model: Any, config: Any, context: CompressionContext) -> Compressed:
        contexts.append(context)
        if len(contexts) <= times:
            for parameter in model.parameters():
                parameter.data.fill_(7)
            failure()
        return real.apply(model, config, context)

    replaced = {**methods, name: dataclasses.replace(real, apply=apply)}
    monkeypatch.setattr(registry, "_load", lambda: (replaced, broken))
    return contexts


def request(base: Path, root: Path, strategy: str, **changes: object) -> CompressionRequest:
    values: dict[str, object] = {
        "model_path": str(base),
        "base_digest": "base",
        "strategy": Strategy.parse(strategy),
        "calibration_path": str(base.parent / "text.jsonl"),
        "calibration_digest": "text",
        "calibration_tokens": 40,
        "checkpoints_root": str(root),
    }
    return CompressionRequest.model_validate(values | changes)


@pytest.mark.parametrize("failure", [too_much, no_memory, wrapped])
def test_a_stage_is_done_again_once_with_half_the_batch(
    failure: Callable[[], None], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = "magnitude:sparsity=0.5 | gptq:bits=4,group_size=32"
    expected = compress(request(base, tmp_path / "undisturbed", strategy)).checkpoint
    contexts = fail_first(monkeypatch, "gptq", 1, failure)
    outcome = compress(request(base, tmp_path / "disturbed", strategy))
    assert [context.batch_size for context in contexts] == [16, 8]
    assert len({context.seed for context in contexts}) == 1
    assert outcome.checkpoint is not None
    assert expected is not None
    manifest = read_manifest(Path(outcome.checkpoint.path))
    assert manifest is not None
    notes = [stage.notes for stage in manifest.stages]
    assert notes[0] == ()
    assert notes[1][-1] == "ran out of memory with 16 windows at once, done again with 8"
    # Begun again from the base model: what the broken stage had done to it is gone.
    here, there = (load_checkpoint(item.path).model for item in (outcome.checkpoint, expected))
    torch.testing.assert_close(logits(here), logits(there), atol=0.3, rtol=0.1)


def test_a_second_failure_of_the_stage_is_the_outcome(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = fail_first(monkeypatch, "rtn", 2, too_much)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        compress(request(base, tmp_path / "checkpoints", "rtn"))
    assert [context.batch_size for context in contexts] == [16, 8]
    assert not list((tmp_path / "checkpoints").glob("[!.]*"))


def test_a_batch_of_one_is_not_tried_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = fail_first(monkeypatch, "rtn", 1, no_memory)
    with pytest.raises(MemoryError):
        compress(request(base, tmp_path / "checkpoints", "rtn", batch_size=1))
    assert len(contexts) == 1


def test_other_errors_are_no_lack_of_memory(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> None:
        raise RuntimeError("shapes do not match")

    contexts = fail_first(monkeypatch, "rtn", 1, other)
    with pytest.raises(CompressionError, match="shapes do not match"):
        compress(request(base, tmp_path / "checkpoints", "rtn"))
    assert len(contexts) == 1


def test_words_of_all_allocators_are_known() -> None:
    for message in ("CUDA out of memory. Tried", "std::bad_alloc", "DefaultCPUAllocator: can't allocate memory: you"):
        assert is_out_of_memory(RuntimeError(message))
        with pytest.raises(MemoryError, match=message[:8]), memory_errors():
            raise RuntimeError(message)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="something"), memory_errors():
        raise RuntimeError("something")


def test_peaks_are_measured_by_stage(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 300_000_000

    def take() -> None:
        torch.zeros(size, dtype=torch.uint8).fill_(1)
        raise MemoryError

    fail_first(monkeypatch, "rtn", 1, take)
    outcome = compress(request(base, tmp_path / "checkpoints", "magnitude:sparsity=0.5 | rtn"))
    # The broken try counts for the whole, not for the stage that was then carried out.
    assert outcome.peak_bytes > size * 0.95
    assert all(0 < stage.peak_bytes < size / 2 for stage in outcome.stages)
