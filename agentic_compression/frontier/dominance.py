"""Dominance that a measurement's noise cannot fool: epsilon boxes.

A pairwise tolerance ("a is as good as b when it is at most epsilon worse") is not transitive: with epsilon = 1 the
latencies 10.0, 10.8 and 11.6 ms give "10.0 equals 10.8" and "10.8 equals 11.6", yet "10.0 beats 11.6". What is kept
then depends on the order in which episodes arrive, and a cycle a → b → c → a over several objectives can leave nothing.

Boxes repair this (Laumanns, Thiele, Deb & Zitzler, "Combining convergence and diversity in evolutionary multiobjective
optimization", Evolutionary Computation 10(3), 2002). Each objective is cut into cells as wide as its noise, each point
is replaced by its cell's indices, and dominance is ordinary Pareto dominance between those integers: a partial order,
so transitive, independent of order, and with at least one maximal element, so that the frontier is never empty.
Where epsilon is 0 (model size) the value itself is the index and the comparison is exact.

The grid is anchored so that the baseline lies in the middle of its cell: whatever differs from the baseline by less
than half of epsilon counts as equal to it. The price of transitivity is that two points less than epsilon apart may
still lie on two sides of a cell's edge.

One point represents each box: the one with the smallest sum of normalised losses, then the smaller losses in order,
then the lower episode. A point that is exactly dominated has the larger sum, so no representative is exactly
dominated; and the order of two points does not depend on any third, so removing an episode that is not on the frontier
cannot change the frontier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentic_compression.pareto import boxes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = ["Archive", "boxes_of", "weighted_sums"]


def weighted_sums(matrix: Matrix, scale: Sequence[float]) -> Matrix:
    """Sum of normalised losses, shape ``(points,)``; column after column, so that any number of rows rounds alike."""
    total = matrix[:, 0] / scale[0]
    for column in range(1, matrix.shape[1]):
        total = total + matrix[:, column] / scale[column]
    return total


class Archive:
    """The representatives of the non-dominated boxes, kept up to date one point at a time.

    Loading points at once, in any order, or adding them one by one gives the same members.
    """

    def __init__(self, anchor: Matrix, epsilon: Sequence[float], scale: Sequence[float]) -> None:
        """Start empty.

        Args:
            anchor: losses of shape ``(5,)`` at the middle of a cell.
            epsilon: noise of each column.
            scale: positive unit of each column, for the choice of representatives.
        """
        import numpy as np

        self._anchor, self._epsilon, self._scale = anchor, tuple(epsilon), tuple(scale)
        self._size = 0
        self._losses = np.empty((16, len(self._epsilon)))
        self._boxes = np.empty_like(self._losses)
        self._sums = np.empty(16)
        self._episodes = np.empty(16, dtype=np.int64)
        self._members: NDArray[np.intp] = np.empty(0, dtype=np.intp)

    def __len__(self) -> int:
        return self._size

    @property
    def members(self) -> NDArray[np.intp]:
        """Rows of the frontier's members, ascending. Never empty once a point was added."""
        return self._members

    @property
    def losses(self) -> Matrix:
        """Losses of all points seen, shape ``(points, 5)``."""
        return self._losses[: self._size]

    @property
    def episodes(self) -> NDArray[np.int64]:
        """Episode numbers of all points seen, shape ``(points,)``."""
        return self._episodes[: self._size]

    def load(self, matrix: Matrix, episodes: Sequence[int]) -> None:
        """Add many points at once.

        Args:
            matrix: losses of shape ``(points, 5)``.
            episodes: their episode numbers.
        """
        import moocore
        import numpy as np

        self._append(matrix, episodes)
        if self._size == 0:
            return
        order = np.lexsort((self.episodes, *self.losses.T[::-1], self._sums[: self._size]))
        # keep_weakly=False keeps the first of equal rows: here the preferred one of each box
        keep = moocore.is_nondominated(self._boxes[order], keep_weakly=False)
        self._members = np.sort(order[keep])

    def add(self, point: Matrix, episode: int) -> bool:
        """Add one point of shape ``(5,)``; whether it became a member of the frontier."""
        import numpy as np

        self._append(point[np.newaxis], [episode])
        row, members = self._size - 1, self._members
        boxes = self._boxes[members]
        not_worse = (boxes <= self._boxes[row]).all(axis=1)
        same = not_worse & (boxes == self._boxes[row]).all(axis=1)
        if (not_worse & ~same).any() or any(self._key(held) < self._key(row) for held in members[same]):
            return False
        covered = (self._boxes[row] <= boxes).all(axis=1)
        self._members = np.append(members[~covered], row)
        return True

    def covered_by(self, row: int) -> NDArray[np.intp]:
        """Rows that ``row`` epsilon-dominates: it is in no objective worse than they are by a box. Itself left out."""
        import numpy as np

        rows = np.flatnonzero((self._boxes[row] <= self._boxes[: self._size]).all(axis=1))
        return rows[rows != row]

    def covering(self, row: int) -> NDArray[np.intp]:
        """Members that epsilon-dominate ``row``, itself left out."""
        members = self._members
        held = members[(self._boxes[members] <= self._boxes[row]).all(axis=1)]
        return held[held != row]

    def _key(self, row: int) -> tuple[float, ...]:
        return (float(self._sums[row]), *self._losses[row].tolist(), float(self._episodes[row]))

    def _append(self, matrix: Matrix, episodes: Sequence[int]) -> None:
        import numpy as np

        needed = self._size + len(matrix)
        if needed > len(self._losses):
            room = max(needed, 2 * len(self._losses))
            self._losses = np.resize(self._losses, (room, self._losses.shape[1]))
            self._boxes = np.resize(self._boxes, self._losses.shape)
            self._sums = np.resize(self._sums, room)
            self._episodes = np.resize(self._episodes, room)
        new = slice(self._size, needed)
        self._losses[new] = matrix
        self._boxes[new] = boxes_of(matrix, self._anchor, self._epsilon)
        self._sums[new] = weighted_sums(matrix, self._scale)
        self._episodes[new] = episodes
        self._size = needed
