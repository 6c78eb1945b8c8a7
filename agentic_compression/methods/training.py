"""The loop that every healing method trains with: AdamW, warm-up and cosine, early stop, resumable.

The optimizer is AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). Learning rates are relative: a tensor whose
values have a root mean square of ``r`` moves by about ``learning_rate * r`` a step (the relative step size of
Adafactor, Shazeer and Stern 2018, arXiv:1804.04235), so that one value fits models whose weights differ in scale.
A seeded tenth of the text, in whole windows, is not trained on; the weights with the smallest loss there are what
training returns, the unchanged ones among the candidates, so that on that text a model never comes out worse than it
went in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import CompressionContext
from agentic_compression.methods.training_batches import Batch, Steps, batches_of, cut, hold_out
from agentic_compression.methods.training_state import Position, digest_of, read_state, write_state

__all__ = [
    "Objective",
    "TrainingPlan",
    "TrainingResult",
    "batch_tokens_for",
    "held_out_loss",
    "in_float32",
    "learning_rate_at",
    "train",
    "window_limit",
]

_LONGEST_WINDOW = 512
_ACTIVATION_BYTES = 1 << 30
_HELD_OUT_STEPS = 16


class Objective(Protocol):
    """What is minimised: a sum over the positions of a batch."""

    def add_gradients(self, batch: Batch, scale: float) -> float:
        """Add ``scale`` times the gradient of the batch's summed loss to the parameters' ``grad``; returns that sum."""

    def measure(self, batch: Batch) -> float:
        """The batch's summed loss, without gradients."""


@dataclass(frozen=True)
class TrainingPlan:
    """How to train.

    Attributes:
        name: of the method, for progress and messages.
        steps: updates at most.
        learning_rate: relative step size after the warm-up.
        seed: of the order of the windows and of the held-out part.
        step_tokens: tokens an update is computed from.
        batch_tokens: tokens that go through the model at once.
        longest: windows are cut to this many tokens.
        warmup: share of the steps over which the rate grows.
        floor: the rate of the last step over the highest.
        evaluations: how often the held-out loss is measured.
        patience: evaluations after which training stops when none was better than those before; the loss before
            training does not count, since the first steps often raise it.
        clip: norm that gradients are scaled down to.
        checkpoint_seconds: between two states on disk.
    """

    name: str
    steps: int
    learning_rate: float
    seed: int = 0
    step_tokens: int = 2048
    batch_tokens: int = 2048
    longest: int = _LONGEST_WINDOW
    warmup: float = 0.05
    floor: float = 0.02
    evaluations: int = 20
    patience: int = 5
    clip: float = 1.0
    checkpoint_seconds: float = 30.0


@dataclass(frozen=True)
class TrainingResult:
    """How training went.

    Attributes:
        steps: updates done.
        best_step: the update whose weights were kept; 0: the unchanged ones.
        first_loss: held-out loss a token before.
        best_loss: held-out loss a token of the weights kept.
        seconds: wall time of this process.
        curve: ``(step, held-out loss)``.
    """

    steps: int
    best_step: int
    first_loss: float
    best_loss: float
    seconds: float
    curve: tuple[tuple[int, float], ...]

    @property
    def note(self) -> str:
        """One line for the manifest."""
        if self.best_step == 0:
            kept = "kept the weights from before"
            return f"{self.steps} steps did not lower the held-out loss of {self.first_loss:.4g}; {kept}"
        return (
            f"held-out loss a token {self.first_loss:.4g} before, {self.best_loss:.4g} after {self.best_step} steps "
            f"({self.steps} trained)"
        )


def window_limit(model: Any) -> int:
    """Longest window to train a model on: 512 tokens or what its positions allow."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(_LONGEST_WINDOW, positions or _LONGEST_WINDOW)


def batch_tokens_for(model: Any, step_tokens: int, batch_size: int = 16) -> int:
    """Tokens that may go through the model at once for its activations to stay within about a gibibyte.

    A block keeps about 34 values of the hidden width a token for the backward pass (Korthikanti et al. 2022,
    arXiv:2205.05198, table 2, at two bytes a value; here four).

    Args:
        model: a causal language model.
        step_tokens: tokens an update is computed from.
        batch_size: of the context: 16 unless memory ran out before; half of it halves the tokens.
    """
    config = model.config.get_text_config()
    each = 68 * config.hidden_size * config.num_hidden_layers
    most = min(step_tokens, max(_LONGEST_WINDOW, _ACTIVATION_BYTES // each))
    return max(1, most * batch_size // 16)


def learning_rate_at(step: int, plan: TrainingPlan) -> float:
    """The rate of update number ``step`` (from 0) over the highest: linear warm-up, then a cosine to ``floor``."""
    warm = max(1, round(plan.warmup * plan.steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, plan.steps - warm)
    return plan.floor + (1 - plan.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(
    parameters: Mapping[str, tuple[torch.Tensor, float]],
    objective: Objective,
    windows: Sequence[torch.Tensor],
    plan: TrainingPlan,
    context: CompressionContext,
    extra: Sequence[torch.Tensor] = (),
) -> TrainingResult:
    """Train parameters in place and leave the best ones in them.

    Args:
        parameters: by name, float32 leaves with the size of one step relative to ``learning_rate``.
        objective: the loss and its gradient.
        windows: int64 ``(1, tokens)`` each; a tenth of them is held out.
        plan: steps, rates, budgets.
        context: scratch folder and progress.
        extra: windows that are only trained on, such as text the teacher wrote.

    Raises:
        CompressionError: too little text, or the loss is no longer a number.
    """
    if not parameters:
        raise CompressionError(f"{plan.name} found nothing to train in this model; leave the stage out")
    mine, held = _divided(windows, plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        run = _Run(parameters, objective, plan, context)
        run.start([*mine, *cut(extra, plan.longest)], batches_of(held, plan.batch_tokens))
        return run.finish()


def held_out_loss(
    objective: Objective, windows: Sequence[torch.Tensor], plan: TrainingPlan, context: CompressionContext
) -> float:
    """Loss a token of the model as it is now, on the text that :func:`train` holds out; may not be finite.

    Args:
        objective: the loss.
        windows: as for :func:`train`.
        plan: likewise.
        context: device.

    Raises:
        CompressionError: too little text.
    """
    batches = batches_of(_divided(windows, plan)[1], plan.batch_tokens)
    return _mean_loss(objective, [_moved(batch, context.device) for batch in batches])


def _divided(windows: Sequence[torch.Tensor], plan: TrainingPlan) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pieces to train on and pieces held out."""
    pieces = cut(windows, plan.longest)
    if len(pieces) < 2:
        raise CompressionError(
            f"{plan.name} needs at least 2 windows of training text, one of them held out, got {len(pieces)}; "
            "give more documents (see: acf methods show " + plan.name + ")"
        )
    most = max(1, _HELD_OUT_STEPS * plan.step_tokens // max(1, sum(map(len, pieces)) // len(pieces)))
    return hold_out(windows, plan.longest, most, plan.seed)


@torch.no_grad()
def _mean_loss(objective: Objective, batches: Sequence[Batch]) -> float:
    return sum(objective.measure(batch) for batch in batches) / sum(batch.count for batch in batches)


def _moved(batch: Batch, device: str) -> Batch:
    return Batch(ids=batch.ids.to(device), predicts=batch.predicts.to(device))


class _Run:
    """One training run; its parts share too much to be functions."""

    def __init__(
        self,
        parameters: Mapping[str, tuple[torch.Tensor, float]],
        objective: Objective,
        plan: TrainingPlan,
        context: CompressionContext,
    ) -> None:
        self._plan, self._objective, self._context = plan, objective, context
        self._begun = time.perf_counter()
        self._rates = [rate for _, rate in parameters.values()]
        self._parameters = {name: tensor for name, (tensor, _) in parameters.items()}
        groups = [{"params": [tensor], "lr": 0.0} for tensor in self._parameters.values()]
        self._optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
        self._best = self._copy()
        self._position = Position()
        self._path: Path | None = None
        self._written = time.monotonic()

    def start(self, windows: Sequence[torch.Tensor], held: Sequence[Batch]) -> None:
        """Measure, take a stored state up if there is one, and train to the end."""
        plan = self._plan
        self._held = [_moved(batch, self._context.device) for batch in held]
        before = self._evaluate()
        if self._context.scratch is not None:
            facts = (plan, before, self._rates, list(self._parameters))
            digest = digest_of(facts, [*self._parameters.values(), *windows])
            self._path = self._context.scratch / f"{plan.name}-{digest}.safetensors"
        stored = None
        if self._path is not None:
            stored = read_state(self._path, self._parameters, self._best, self._optimizer)
        self._position = stored or Position(best_loss=before, curve=((0, before),))
        if self._position.finished:
            return
        every = max(1, plan.steps // plan.evaluations)
        steps = Steps(windows, plan.step_tokens, plan.batch_tokens, plan.seed)
        for batches in steps.starting_at(self._position.step):
            if self._position.step >= plan.steps or self._position.waited >= plan.patience:
                break
            self._context.progress(plan.name, self._position.step, plan.steps)
            self._update([_moved(batch, self._context.device) for batch in batches])
            self._position.step += 1
            if self._position.step % every == 0 or self._position.step == plan.steps:
                self._judge()
            self._write(last=False)
        self._position.finished = True
        self._write(last=True)

    def finish(self) -> TrainingResult:
        """Put the best weights in place."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._best[name])
                parameter.grad = None
        self._context.progress(self._plan.name, self._plan.steps, self._plan.steps)
        position = self._position
        return TrainingResult(
            steps=position.step,
            best_step=position.best_step,
            first_loss=position.curve[0][1],
            best_loss=position.best_loss,
            seconds=time.perf_counter() - self._begun,
            curve=position.curve,
        )

    def _update(self, batches: Sequence[Batch]) -> None:
        plan = self._plan
        rate = plan.learning_rate * learning_rate_at(self._position.step, plan)
        for group, relative in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * relative
        self._optimizer.zero_grad(set_to_none=True)
        count = sum(batch.count for batch in batches)
        loss = sum(self._objective.add_gradients(batch, 1 / count) for batch in batches) / count
        norm = float(torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), plan.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise CompressionError(
                f"{plan.name}: the loss became {loss} (gradient norm {norm}) at step {self._position.step + 1} of "
                f"{plan.steps} with learning_rate {plan.learning_rate:g}; use a smaller learning_rate"
            )
        self._optimizer.step()

    def _judge(self) -> None:
        loss = self._evaluate()
        self._position.curve = (*self._position.curve, (self._position.step, loss))
        self._position.waited += 1
        if loss < self._position.lowest:
            self._position.lowest, self._position.waited = loss, 0
        if loss < self._position.best_loss:
            self._position.best_loss, self._position.best_step = loss, self._position.step
            self._best = self._copy()

    def _evaluate(self) -> float:
        loss = _mean_loss(self._objective, self._held)
        if not math.isfinite(loss):
            raise CompressionError(
                f"{self._plan.name}: the held-out loss is {loss} after {self._position.step} steps with learning_rate "
                f"{self._plan.learning_rate:g}; use a smaller learning_rate, or check the model where no step was made"
            )
        return loss

    def _write(self, *, last: bool) -> None:
        """Store the state when it is due; a run that never was due stores none."""
        due = time.monotonic() - self._written >= self._plan.checkpoint_seconds
        if self._path is not None and (due or (last and self._path.is_file())):
            write_state(self._path, self._position, self._parameters, self._best, self._optimizer)
            self._written = time.monotonic()

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._parameters.items()}


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """Hold a model's floating-point parameters in float32 inside, and round them once to their own types after.

    Updates far smaller than a weight are lost in 16 bits, and CPUs multiply float32 as fast. Buffers stay as they are.
    """
    kinds = {id(parameter): parameter.dtype for parameter in model.parameters()}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
    try:
        yield
    finally:
        for parameter in model.parameters():
            if id(parameter) in kinds:
                parameter.data = parameter.data.to(kinds[id(parameter)])
