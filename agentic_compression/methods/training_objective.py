"""Losses of healing: the uncompressed model's distribution (knowledge distillation) or the next token of the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import CompressionContext
from agentic_compression.methods.training_batches import Batch

__all__ = ["Imitation", "NextToken", "distillation_loss", "kept_blocks", "load_teacher", "matching_blocks"]

_CHUNK_BYTES = 64 << 20


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T² Σ KL(softmax(teacher / T) ‖ softmax(student / T))`` over positions (Hinton et al. 2015, §2.1).

    The factor ``T²`` keeps the gradient's size when ``T`` changes.

    Args:
        student: logits ``(positions, vocabulary)``.
        teacher: likewise.
        temperature: ``T``; above 1 the unlikely tokens weigh more.

    Returns:
        A scalar.
    """
    predicted = functional.log_softmax(student.float() / temperature, dim=-1)
    wanted = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return functional.kl_div(predicted, wanted, reduction="sum", log_target=True) * temperature**2


def load_teacher(model: Any, what: str, context: CompressionContext) -> Any:
    """The uncompressed model, to imitate; nothing of it trains.

    Args:
        model: the student.
        what: name of the method, for messages.
        context: loads the model.

    Raises:
        CompressionError: when it cannot be loaded or has another vocabulary.
    """
    if context.load_base is None:
        raise CompressionError(f"{what} needs the uncompressed model as its teacher, got none; give load_base")
    teacher = context.load_base()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    mine, theirs = (each.config.get_text_config().vocab_size for each in (model, teacher))
    if mine != theirs:
        raise CompressionError(f"{what} needs a teacher of the same vocabulary, got {theirs} tokens for {mine}")
    return teacher.eval()


class _Model:
    """A causal model as features of every position and a head that makes logits of some of them.

    The logits of a whole batch may be far larger than everything else (150,000 tokens of vocabulary are 0.6 MB a
    position), so they are made in chunks. Where the head is not just the output embedding (scaled or soft-capped
    logits) the features are the logits themselves, and only the softmax is chunked.
    """

    def __init__(self, model: Any, sample: torch.Tensor) -> None:
        self._model = model
        self._body = getattr(model, "base_model", None)
        getter = getattr(model, "get_output_embeddings", None)
        head = getter() if getter else None
        self.head: Callable[[torch.Tensor], torch.Tensor] = head if head is not None else torch.nn.Identity()
        if self._body is None or self._body is model or head is None or not self._splits(sample):
            self._body, self.head = None, torch.nn.Identity()

    def run(self, ids: torch.Tensor, hidden: bool) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Features ``(windows, tokens, width)`` and, when asked for, the output ``(windows, tokens, hidden)`` of every
        block, the last one normalised.
        """
        called = self._model if self._body is None else self._body
        result = called(input_ids=ids, use_cache=False, output_hidden_states=hidden)
        features = result.logits if self._body is None else result.last_hidden_state
        return features, result.hidden_states[1:] if hidden else ()

    def _splits(self, sample: torch.Tensor) -> bool:
        with torch.no_grad():
            whole = self._model(input_ids=sample, use_cache=False).logits
            parts = self.head(self.run(sample, hidden=False)[0])
        return whole.shape == parts.shape and torch.allclose(whole.float(), parts.float(), rtol=1e-3, atol=1e-3)


class NextToken:
    """Cross-entropy of the text's own next tokens."""

    def __init__(self, student: Any, sample: torch.Tensor) -> None:
        """Look at how the student is put together.

        Args:
            student: a causal language model.
            sample: a few token ids ``(1, tokens)``.
        """
        self._student = _Model(student, sample)

    def add_gradients(self, batch: Batch, scale: float) -> float:
        """See :class:`~agentic_compression.methods.training.Objective`."""
        features, _ = self._student.run(batch.ids, hidden=False)
        picked = features[batch.predicts]
        leaf = picked.detach().requires_grad_()
        total = 0.0
        for loss in self._losses(leaf, _next_tokens(batch)):
            (loss * scale).backward()
            total += float(loss.detach())
        picked.backward(leaf.grad)
        return total

    def measure(self, batch: Batch) -> float:
        """See :class:`~agentic_compression.methods.training.Objective`."""
        features, _ = self._student.run(batch.ids, hidden=False)
        return sum(float(loss) for loss in self._losses(features[batch.predicts], _next_tokens(batch)))

    def _losses(self, features: torch.Tensor, targets: torch.Tensor) -> Iterator[torch.Tensor]:
        head = self._student.head
        for part in _chunks(head, features):
            yield functional.cross_entropy(head(features[part]).float(), targets[part], reduction="sum")


class Imitation:
    """Distance to the uncompressed model: of the next token's distribution and, where asked, of the hidden states.

    The hidden part is, a position and block, the squared distance over the teacher's mean square (as TinyBERT, Jiao et
    al. 2020, arXiv:1909.10351, without projections, which the equal widths make unnecessary); the held-out loss leaves
    it out.
    """

    def __init__(
        self, student: Any, teacher: Any, sample: torch.Tensor, temperature: float = 1.0, hidden_weight: float = 0.0
    ) -> None:
        """Look at how both models are put together.

        Args:
            student: a causal language model.
            teacher: one with the same vocabulary.
            sample: a few token ids ``(1, tokens)``.
            temperature: of both distributions.
            hidden_weight: of the hidden part; needs models of one width.
        """
        self._student, self._teacher = _Model(student, sample), _Model(teacher, sample)
        self._temperature = temperature
        self._hidden_weight = hidden_weight
        self._pairs = matching_blocks(student, teacher) if hidden_weight else []

    def add_gradients(self, batch: Batch, scale: float) -> float:
        """See :class:`~agentic_compression.methods.training.Objective`."""
        hidden = self._hidden_weight > 0
        with torch.no_grad():
            wanted, wanted_states = self._teacher.run(batch.ids, hidden)
        features, states = self._student.run(batch.ids, hidden)
        picked = features[batch.predicts]
        leaf = picked.detach().requires_grad_()
        total = 0.0
        for loss in self._losses(leaf, wanted[batch.predicts]):
            (loss * scale).backward()
            total += float(loss.detach())
        if not hidden:
            picked.backward(leaf.grad)
            return total
        distance = self._hidden_weight * self._distance(states, wanted_states, batch)
        torch.autograd.backward([picked, distance * scale], [leaf.grad, None])
        return total + float(distance.detach())

    def measure(self, batch: Batch) -> float:
        """See :class:`~agentic_compression.methods.training.Objective`."""
        wanted, _ = self._teacher.run(batch.ids, hidden=False)
        features, _ = self._student.run(batch.ids, hidden=False)
        return sum(float(loss) for loss in self._losses(features[batch.predicts], wanted[batch.predicts]))

    def _losses(self, features: torch.Tensor, wanted: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in _chunks(self._student.head, features):
            with torch.no_grad():
                target = self._teacher.head(wanted[part])
            yield distillation_loss(self._student.head(features[part]), target, self._temperature)

    def _distance(self, states: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
        """Summed over positions, averaged over blocks."""
        terms = []
        for mine, theirs in self._pairs:
            target = wanted[theirs][batch.predicts].float()
            difference = states[mine][batch.predicts].float() - target
            terms.append(difference.square().sum() / target.square().mean() / target.shape[-1])
        return torch.stack(terms).mean()


def matching_blocks(student: Any, teacher: Any) -> list[tuple[int, int]]:
    """Which block of the teacher the output of each of the student's blocks should be like.

    With as many blocks, the same one. With fewer, a block's output is compared with the input that the next kept block
    (see :func:`kept_blocks`) had in the teacher, the last one's with the teacher's last.

    Raises:
        ValueError: when the widths differ.
    """
    from agentic_compression.methods.layerwise import blocks_of

    if student.config.get_text_config().hidden_size != teacher.config.get_text_config().hidden_size:
        raise ValueError("hidden states can be compared only where student and teacher have the same width")
    mine, theirs = blocks_of(student)[1], blocks_of(teacher)[1]
    if len(mine) == len(theirs):
        return [(index, index) for index in range(len(mine))]
    following = [*kept_blocks(mine, theirs)[1:], len(theirs)]
    return [(index, after - 1) for index, after in enumerate(following)]


def kept_blocks(mine: torch.nn.ModuleList, theirs: torch.nn.ModuleList) -> list[int]:
    """Which of the teacher's blocks each of the student's blocks was, of which there are at most as many.

    They are recognised by their normalisation weights, which removing whole blocks leaves as they are: the in-order
    assignment with the smallest summed distance (dynamic programming).
    """
    if len(mine) == len(theirs):
        return list(range(len(mine)))
    return _in_order([[_distance_of(a, b) for b in theirs] for a in mine])


def _distance_of(mine: torch.nn.Module, theirs: torch.nn.Module) -> float:
    other = dict(theirs.named_parameters())
    distance = 0.0
    for name, parameter in mine.named_parameters():
        if parameter.dim() == 1 and name in other and other[name].shape == parameter.shape:
            distance += float((parameter.detach().float() - other[name].detach().float()).square().mean())
    return distance


def _in_order(cost: list[list[float]]) -> list[int]:
    """Strictly growing columns, one a row, with the smallest summed cost."""
    columns = len(cost[0])
    # best[j]: the rows so far, assigned within the first j columns
    best: list[tuple[float, list[int]]] = [(0.0, [])] * (columns + 1)
    for row, costs in enumerate(cost):
        following: list[tuple[float, list[int]]] = [(float("inf"), [])] * (columns + 1)
        for column in range(row, columns):
            total, chosen = best[column]
            candidate = (total + costs[column], [*chosen, column])
            following[column + 1] = min(following[column], candidate, key=lambda pair: pair[0])
        best = following
    return best[columns][1]


def _next_tokens(batch: Batch) -> torch.Tensor:
    """The real next token of every position that counts: ``(positions,)``."""
    return torch.roll(batch.ids, -1, dims=1)[batch.predicts]


def _chunks(head: Any, features: torch.Tensor) -> Iterator[slice]:
    """Slices of the positions whose logits together take some tens of megabytes."""
    width = getattr(head, "out_features", None) or features.shape[-1]
    rows = max(16, _CHUNK_BYTES // (4 * int(width)))
    for start in range(0, features.shape[0], rows):
        yield slice(start, start + rows)
