"""The training loop: its schedule, its batches, resuming, stopping, failing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext
from agentic_compression.methods.training import TrainingPlan, TrainingResult, in_float32, learning_rate_at, train
from agentic_compression.methods.training_batches import Batch, Steps, batches_of, cut, hold_out
from tests.unit.methods.tiny_models import logits, tiny_model
from tests.unit.methods.training_windows import random_windows

PLAN = TrainingPlan(name="distill", steps=40, learning_rate=0.05, step_tokens=80, batch_tokens=60, checkpoint_seconds=0)


class Bigram:
    """Cross-entropy of a table of next-token logits: a model whose loss and gradient are easy to know."""

    def __init__(self, vocabulary: int = 210) -> None:
        self.table = torch.zeros((vocabulary, vocabulary), requires_grad=True)
        self.calls = 0

    def loss(self, batch: Batch) -> torch.Tensor:
        targets = torch.roll(batch.ids, -1, dims=1)[batch.predicts]
        return torch.nn.functional.cross_entropy(self.table[batch.ids[batch.predicts]], targets, reduction="sum")

    def add_gradients(self, batch: Batch, scale: float) -> float:
        self.calls += 1
        loss = self.loss(batch)
        (loss * scale).backward()
        return float(loss.detach())

    def measure(self, batch: Batch) -> float:
        return float(self.loss(batch))


def run(
    plan: TrainingPlan, scratch: Path | None = None, progress: Callable[[str, int, int], None] | None = None
) -> tuple[torch.Tensor, TrainingResult, int]:
    objective = Bigram()
    context = CompressionContext(scratch=scratch)
    if progress:
        context = replace(context, progress=progress)
    result = train({"table": (objective.table, 1.0)}, objective, random_windows(30), plan, context)
    return objective.table.detach(), result, objective.calls


def test_training_lowers_the_held_out_loss_and_is_deterministic() -> None:
    first, result, _ = run(PLAN)
    torch.manual_seed(5)
    second, again, _ = run(PLAN)
    assert torch.equal(first, second)
    assert result.curve == again.curve
    assert result.best_loss < result.first_loss == pytest.approx(math.log(210), rel=1e-6)
    assert not torch.equal(first, run(replace(PLAN, seed=1))[0])


def test_the_random_state_outside_is_untouched() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    run(PLAN)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("killed_after", [0, 1, 7, 20, 39])
def test_a_killed_run_goes_on_to_the_same_result(killed_after: int, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if done == killed_after:
            raise Killed

    whole, result, _ = run(PLAN)
    with pytest.raises(Killed):
        run(PLAN, tmp_path, kill)
    resumed, again, calls = run(PLAN, tmp_path)
    assert torch.equal(resumed, whole)
    assert again.curve == result.curve
    assert again.best_step == result.best_step
    if killed_after > 30:
        assert calls <= 4  # went on, did not begin again
    finished, _, calls = run(PLAN, tmp_path)
    assert calls == 0
    assert torch.equal(finished, whole)


def test_state_of_another_run_or_a_damaged_one_is_not_taken_up(tmp_path: Path) -> None:
    whole, _, _ = run(replace(PLAN, seed=1))
    run(PLAN, tmp_path)
    assert torch.equal(run(replace(PLAN, seed=1), tmp_path)[0], whole)
    for file in tmp_path.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(run(replace(PLAN, seed=1), tmp_path)[0], whole)
    assert not list(tmp_path.glob("*.tmp"))


def test_training_stops_early_and_keeps_the_best_weights() -> None:
    class Worse(Bigram):
        """The held-out loss is smallest when the table's mean distance from zero is near 0.2."""

        def measure(self, batch: Batch) -> float:
            return abs(float(self.table.detach().abs().max()) - 0.2) * batch.count

    objective = Worse()
    plan = replace(PLAN, steps=200, evaluations=100, patience=3)
    result = train({"table": (objective.table, 1.0)}, objective, random_windows(30), plan, CompressionContext())
    losses = dict(result.curve)
    assert result.steps < 200
    assert result.steps == result.best_step + 3 * 2
    assert result.best_loss == min(losses.values()) == losses[result.best_step]
    assert abs(float(objective.table.detach().abs().max()) - 0.2) == pytest.approx(result.best_loss, abs=1e-6)


def test_training_goes_on_while_it_repairs_what_its_first_steps_broke() -> None:
    class Repairing(Bigram):
        """Evaluations give 1.0 before, then 3.0 falling by 0.1 each time."""

        def __init__(self) -> None:
            super().__init__()
            self.losses = iter([1.0, *(3 - 0.1 * index for index in range(40))])

        def measure(self, batch: Batch) -> float:
            return next(self.losses) * batch.count

    objective = Repairing()
    plan = replace(PLAN, steps=40, evaluations=40, patience=3, batch_tokens=10_000)
    result = train({"table": (objective.table, 1.0)}, objective, random_windows(12), plan, CompressionContext())
    assert result.steps == 40
    assert result.best_step == min(result.curve, key=lambda pair: pair[1])[0] > 20


def test_weights_are_as_before_when_training_only_makes_it_worse() -> None:
    class Overfit(Bigram):
        def measure(self, batch: Batch) -> float:
            return float(self.table.detach().abs().sum()) + 1

    objective = Overfit()
    result = train({"table": (objective.table, 1.0)}, objective, random_windows(30), PLAN, CompressionContext())
    assert result.best_step == 0
    assert not objective.table.detach().any()
    assert "kept the weights from before" in result.note


def test_a_loss_that_is_no_number_is_an_error_that_names_the_rate() -> None:
    class Diverging(Bigram):
        def loss(self, batch: Batch) -> torch.Tensor:
            return super().loss(batch) * (float("nan") if self.calls > 5 else 1.0)

    objective = Diverging()
    with pytest.raises(CompressionError, match=r"distill: the loss became nan.*learning_rate 0.05.*smaller"):
        train({"table": (objective.table, 1.0)}, objective, random_windows(30), PLAN, CompressionContext())


def test_too_little_text_and_nothing_to_train_are_errors() -> None:
    objective = Bigram()
    with pytest.raises(CompressionError, match="at least 2 windows"):
        train({"table": (objective.table, 1.0)}, objective, random_windows(1), PLAN, CompressionContext())
    with pytest.raises(CompressionError, match="nothing to train"):
        train({}, objective, random_windows(9), PLAN, CompressionContext())


def test_accumulated_gradient_is_that_of_all_tokens_together() -> None:
    whole, parts = Bigram(), Bigram()
    windows = cut(random_windows(10), 512)
    (batch,) = batches_of(windows, 100_000)
    whole.add_gradients(batch, 1 / batch.count)
    for part in batches_of(windows, 90):
        parts.add_gradients(part, 1 / batch.count)
    assert whole.table.grad is not None
    torch.testing.assert_close(parts.table.grad, whole.table.grad)
    assert sum(part.count for part in batches_of(windows, 90)) == sum(len(window) - 1 for window in windows)


@given(
    lengths=st.lists(st.integers(2, 70), min_size=1, max_size=40),
    step_tokens=st.integers(20, 200),
    batch_tokens=st.integers(20, 200),
    begin=st.integers(0, 60),
)
def test_every_window_is_seen_once_a_pass_and_resuming_finds_the_same_steps(
    lengths: list[int], step_tokens: int, batch_tokens: int, begin: int
) -> None:
    windows = [torch.full((length,), index + 1) for index, length in enumerate(lengths)]
    steps = Steps(windows, step_tokens, batch_tokens, seed=3)
    first_pass = steps._epoch(0)
    assert sorted(index for step in first_pass for index in step) == list(range(len(windows)))
    assert first_pass == Steps(windows, step_tokens, 2 * batch_tokens, seed=3)._epoch(0)
    stream = steps.starting_at(0)
    taken = [next(stream) for _ in range(begin + 3)]
    resumed = steps.starting_at(begin)
    for expected in taken[begin:]:
        got = next(resumed)
        assert len(got) == len(expected)
        assert all(torch.equal(a.ids, b.ids) for a, b in zip(got, expected, strict=True))
    for step in taken:
        assert sum(batch.count for batch in step) <= max(step_tokens, *lengths)
        for batch in step:
            assert batch.ids.shape[0] == 1 or batch.ids.numel() <= batch_tokens
            assert batch.count == int((batch.ids != 0).sum()) - batch.ids.shape[0]


def test_long_windows_are_cut_and_a_tenth_is_held_out() -> None:
    pieces = cut([torch.arange(25)[None], torch.arange(13)[None]], 10)
    assert [len(piece) for piece in pieces] == [10, 10, 10]
    mine, held = hold_out([torch.full((2,), index) for index in range(40)], 10, 100, seed=0)
    assert (len(mine), len(held)) == (36, 4)
    assert sorted(int(window[0]) for window in (*mine, *held)) == list(range(40))
    assert len(hold_out(mine, 10, 2, seed=0)[1]) == 2


@given(
    lengths=st.lists(st.integers(1, 90), min_size=2, max_size=30),
    longest=st.integers(8, 40),
    most=st.integers(1, 5),
    seed=st.integers(0, 3),
)
def test_whole_windows_are_held_out(lengths: list[int], longest: int, most: int, seed: int) -> None:
    """No piece that is trained on comes from a window of which another piece is held out."""
    windows = [torch.full((1, length), index) for index, length in enumerate(lengths)]
    pieces = cut(windows, longest)
    if len({int(piece[0]) for piece in pieces}) < 2:
        return
    mine, held = hold_out(windows, longest, most, seed)
    trained, judged = ({int(piece[0]) for piece in side} for side in (mine, held))
    assert trained
    assert judged
    assert not trained & judged
    assert sorted(map(len, [*mine, *held])) == sorted(map(len, pieces))
    shortest = min(len(cut([window], longest)) for window in windows if window.shape[1] > 1)
    assert len(held) <= max(shortest, min(most, len(pieces) // 10))


def test_a_single_long_window_is_divided() -> None:
    mine, held = hold_out([torch.arange(100)[None]], 10, 100, seed=0)
    assert (len(mine), len(held)) == (9, 1)


def test_the_rate_warms_up_and_falls_like_a_cosine() -> None:
    plan = TrainingPlan(name="distill", steps=100, learning_rate=1.0, warmup=0.1, floor=0.02)
    rates = [learning_rate_at(step, plan) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1)
    assert rates[55] == pytest.approx(0.02 + 0.98 / 2)
    assert rates[99] == pytest.approx(0.02 + 0.49 * (1 + math.cos(math.pi * 89 / 90)))


def test_a_model_comes_back_from_float32_unchanged() -> None:
    model = tiny_model("tied", torch.bfloat16)
    before = logits(model)
    with in_float32(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model), before)
