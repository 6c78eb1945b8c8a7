"""Whether a candidate can still change the frontier, told from what is known of it so far.

The candidate is put at its optimistic corner: the most that its accuracy can be, costs as measured, and the least they
can be where they are not measured yet. From there it must add at least ``least_gain`` of the current hypervolume, and
its box (see ``frontier.dominance``) must not be covered by a rival's: what lies within the baseline's noise of a rival
in everything adds nothing that can be measured.

Measured costs stand at their values, not at the ends of their intervals: the frontier will be decided on these values,
and at its interval's end every copy of a rival would look better than the rival.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentic_compression.pareto import NAMES, boxes_of, hypervolume, loss_rows, noise_of, reference_point
from agentic_compression.records import KlEvidence, Objectives, Rival

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = ["Contest", "accuracy_ceiling"]

KL_MARGIN = 2.0
_LEAST_PAIRS = 3
_HALVINGS = 14


class Contest:
    """The rivals of a candidate. Nothing here depends on their order."""

    def __init__(self, rivals: Sequence[Rival], least_gain: float) -> None:
        """Compare with these rivals.

        Args:
            rivals: episode 0 among them fixes the reference point and the noise; without it nothing is excluded.
            least_gain: share of the hypervolume that a candidate must add.
        """
        ordered = sorted(rivals, key=lambda rival: rival.episode)
        self._least_gain = least_gain
        self._baseline = next((rival for rival in ordered if rival.episode == 0), None)
        self._losses = loss_rows([rival.objectives for rival in ordered])
        self._reference, self._noise = None, (0.0,) * len(NAMES)
        if self._baseline is not None:
            self._reference = reference_point(self._baseline.objectives)
            self._noise = tuple(noise_of(self._baseline.intervals).values())
        self.volume = hypervolume(self._losses, self._reference)
        self._boxes = self._box(self._losses) if self._baseline is not None else self._losses

    def gain(self, corner: Objectives) -> float:
        """Hypervolume that a point would add, as a share of the rivals'; infinite while they have none."""
        import numpy as np

        added = hypervolume(np.vstack([self._losses, loss_rows([corner])]), self._reference) - self.volume
        return added / self.volume if self.volume > 0 else float("inf")

    def is_covered(self, corner: Objectives) -> bool:
        """Whether some rival's box is nowhere worse than the point's."""
        if self._baseline is None:
            return False
        return bool((self._boxes <= self._box(loss_rows([corner]))).all(axis=1).any())

    def stands(self, objectives: Objectives) -> bool:
        """Whether no rival's box dominates this one; sharing a box is standing, for only one of them will be kept."""
        if self._baseline is None:
            return True
        box = self._box(loss_rows([objectives]))
        dominates = (self._boxes <= box).all(axis=1) & (self._boxes < box).any(axis=1)
        return not bool(dominates.any())

    def can_change(self, corner: Objectives) -> bool:
        """Whether a candidate whose corner this is can still change the frontier."""
        return not self.is_covered(corner) and self.gain(corner) >= self._least_gain

    def needed_accuracy(self, costs: Objectives) -> float | None:
        """The least accuracy with which these costs change the frontier; None when no accuracy does.

        Found by halving, from below, to within 1e-4: more accuracy never hurts.
        """
        if not self.can_change(_with(costs, 1.0)):
            return None
        low, high = 0.0, 1.0
        if self.can_change(_with(costs, low)):
            return low
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self.can_change(_with(costs, middle)) else (middle, high)
        return low

    def _box(self, matrix: Matrix) -> Matrix:
        assert self._baseline is not None
        return boxes_of(matrix, loss_rows([self._baseline.objectives])[0], self._noise)


def accuracy_ceiling(kl: float, evidence: Sequence[KlEvidence], vocabulary: int | None = None) -> float:
    """The most that an accuracy can be beside a divergence, with a wide margin; never used to rank.

    Among earlier episodes that diverged at least half as much, no fewer than three, the best upper bound of an
    accuracy. A candidate would have to beat every model up to twice as close to the baseline as itself. Without three
    such episodes only a divergence above that of guessing tokens at random, ``ln(vocabulary)`` nats at most, says
    anything: nothing is left then.
    """
    if vocabulary is not None and not kl < math.log(vocabulary):
        return 0.0
    near = [pair.accuracy for pair in evidence if pair.kl >= kl / KL_MARGIN]
    return max(near) if len(near) >= _LEAST_PAIRS else 1.0


def _with(costs: Objectives, accuracy: float) -> Objectives:
    return costs.model_copy(update={"accuracy": accuracy})
