"""Windows of training text as padded batches: which windows go together, and in which step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Batch", "Steps", "batches_of", "cut", "hold_out"]

_SHORTEST = 8
_POOL = 16


@dataclass(frozen=True)
class Batch:
    """Windows side by side, short ones padded at the end.

    A causal model's outputs at real tokens do not depend on padding after them, so no attention mask is needed.

    Attributes:
        ids: int64 ``(windows, tokens)``; padding is token 0.
        predicts: bool ``(windows, tokens)``: positions whose next token is a real one, the only ones that count.
    """

    ids: torch.Tensor
    predicts: torch.Tensor

    @property
    def count(self) -> int:
        """Positions that count."""
        return int(self.predicts.sum())


def cut(windows: Sequence[torch.Tensor], longest: int) -> list[torch.Tensor]:
    """Windows ``(1, tokens)`` as ``(tokens,)`` pieces of at most ``longest``; the rest of one is dropped below 8."""
    pieces = []
    for window in windows:
        flat = window.reshape(-1)
        for start in range(0, flat.shape[0], longest):
            piece = flat[start : start + longest]
            if start == 0 or piece.shape[0] >= _SHORTEST:
                pieces.append(piece)
    return [piece for piece in pieces if piece.shape[0] > 1]


def hold_out(
    windows: Sequence[torch.Tensor], longest: int, most: int, seed: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pieces to train on, and those of whole windows in a seeded tenth, to decide when to stop.

    Pieces of one window are never on both sides: they are so alike that the loss on one falls while the model learns
    the other by heart. A single window has nothing else to be compared with, and its pieces are divided.

    Args:
        windows: ``(1, tokens)`` each, or ``(tokens,)``.
        longest: tokens a piece.
        most: pieces held out at most, unless every window has more; then the shortest is held out.
        seed: of the choice.

    Returns:
        Pieces ``(tokens,)`` to train on, and pieces held out: at most a tenth, one window at least.
    """
    cuts = [pieces for pieces in (cut([window], longest) for window in windows) if pieces]
    if len(cuts) == 1:
        cuts = [[piece] for piece in cuts[0]]
    order = torch.randperm(len(cuts), generator=torch.Generator().manual_seed(seed)).tolist()
    wanted = min(most, max(1, sum(map(len, cuts)) // 10))
    held: list[int] = []
    for index in order:
        if len(cuts[index]) <= wanted:
            held.append(index)
            wanted -= len(cuts[index])
    if not held and order:
        held.append(min(order, key=lambda index: len(cuts[index])))
    mine = [piece for index in order if index not in set(held) for piece in cuts[index]]
    return mine, [piece for index in held for piece in cuts[index]]


def batches_of(windows: Sequence[torch.Tensor], tokens: int) -> list[Batch]:
    """All windows, in batches of similar length of at most ``tokens`` with padding, or of one window."""
    groups = _groups(list(windows), list(range(len(windows))), tokens)
    return [_collate([windows[index] for index in group]) for group in groups]


@dataclass(frozen=True)
class Steps:
    """The batches of every step, a function of the step's number and the seed alone, so that a run can be resumed.

    Windows are shuffled anew for every pass over the text; within pools of several steps they are sorted by length and
    cut into steps of at most ``step_tokens`` with padding, whose order is then shuffled. What a step is made of does
    not depend on ``batch_tokens``.

    Attributes:
        windows: ``(tokens,)`` each.
        step_tokens: tokens one update is computed from.
        batch_tokens: tokens that go through the model at once.
        seed: of the order.
    """

    windows: Sequence[torch.Tensor]
    step_tokens: int
    batch_tokens: int
    seed: int

    def starting_at(self, step: int) -> Iterator[list[Batch]]:
        """Batches of step ``step``, of the one after, and so on without end."""
        passed, epoch = 0, 0
        while True:
            steps = self._epoch(epoch)
            for indices in steps[max(0, step - passed) :]:
                yield batches_of([self.windows[index] for index in indices], self.batch_tokens)
            passed += len(steps)
            epoch += 1

    def _epoch(self, epoch: int) -> list[list[int]]:
        """For every step of one pass the indices of its windows."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        steps: list[list[int]] = []
        pool: list[int] = []
        tokens = 0
        for index in torch.randperm(len(self.windows), generator=generator).tolist():
            pool.append(index)
            tokens += self.windows[index].shape[0]
            if tokens >= _POOL * self.step_tokens:
                steps += _groups(self.windows, pool, self.step_tokens)
                pool, tokens = [], 0
        steps += _groups(self.windows, pool, self.step_tokens)
        return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]


def _groups(windows: Sequence[torch.Tensor], indices: list[int], tokens: int) -> list[list[int]]:
    ordered = sorted(indices, key=lambda index: (-windows[index].shape[0], index))
    groups: list[list[int]] = []
    for index in ordered:
        longest = windows[groups[-1][0]].shape[0] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _collate(windows: Sequence[torch.Tensor]) -> Batch:
    longest = max(window.shape[0] for window in windows)
    ids = torch.zeros((len(windows), longest), dtype=torch.int64)
    predicts = torch.zeros((len(windows), longest), dtype=torch.bool)
    for row, window in enumerate(windows):
        ids[row, : window.shape[0]] = window
        predicts[row, : window.shape[0] - 1] = True
    return Batch(ids=ids, predicts=predicts)
