"""The frontier document: a pure function of a study's recorded episodes, and its incremental form."""

from __future__ import annotations

import shlex
from bisect import insort
from typing import TYPE_CHECKING

from agentic_compression.frontier.hypervolume import archive_of, hypervolume
from agentic_compression.frontier.objectives import (
    NAMES,
    OBJECTIVES,
    losses,
    measured,
    noise_vector,
    one_per_episode,
    reference_of,
)
from agentic_compression.frontier.reported import is_split, reported, unreported
from agentic_compression.records import FrontierDocument, Objectives, Solution

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from agentic_compression.records import Constraint, EpisodeRecord

    Matrix = NDArray[np.float64]

__all__ = ["FrontierBuilder", "build_frontier", "knee_of", "measure_command", "rebuild_command"]


def build_frontier(
    study: str, records: Sequence[EpisodeRecord], constraints: Sequence[Constraint] = ()
) -> FrontierDocument:
    """The frontier of a study: its non-dominated measured episodes.

    Where the study has split its items (the baseline has a report), accuracy is that of the report side; an episode
    without one does not take part, and stands in ``unreported`` if the search side alone would have kept it.

    Dominance is over epsilon boxes whose widths are the baseline's measured noise (see ``frontier.dominance``): it is
    transitive, does not depend on the order of the records, and leaves at least one solution as soon as one episode
    succeeded. The baseline takes part and can be a solution. Constraints do not remove a solution, they mark it.

    Args:
        study: its name.
        records: everything recorded of this study, in any order, failures included.
        constraints: bounds that ``meets_constraints`` and the knee respect.

    Returns:
        The document with solutions by rising episode number. ``dominates`` lists the episodes a solution
        epsilon-dominates: those it is nowhere worse than by a box, the ones that share its box included; every
        measured episode that is not a solution is in at least one of these lists. ``hypervolume`` is that of the
        solutions' own objectives. Without a measured baseline there is no reference point, no noise (comparison is
        exact), and the hypervolume is 0.
    """
    builder = FrontierBuilder(study, constraints)
    builder.extend(records)
    return builder.document()


class FrontierBuilder:
    """``build_frontier`` for a study that grows: one more episode costs a fraction of building it again."""

    def __init__(self, study: str, constraints: Sequence[Constraint] = ()) -> None:
        self._study, self._constraints = study, tuple(constraints)
        self._reset()

    def _reset(self) -> None:
        self._recorded: dict[int, EpisodeRecord] = {}
        self._split = False
        self._points: list[EpisodeRecord] = []
        self._baseline: EpisodeRecord | None = None
        self._reference: Objectives | None = None
        self._noise = dict.fromkeys(NAMES, 0.0)
        self._archive = archive_of(None, noise_vector(self._noise))
        self._dominated: dict[int, list[int]] = {}  # member's row -> episodes, rising
        self._solutions: dict[int, Solution] = {}  # cache by row; dropped when what it says may have changed
        self._volume = 0.0

    def extend(self, records: Sequence[EpisodeRecord]) -> None:
        """Add many records at once, in any order."""
        merged = one_per_episode([*self._recorded.values(), *records])
        self._reset()
        self._recorded = {record.episode: record for record in merged}
        self._split = is_split(merged)
        self._points = measured(reported(merged))
        self._baseline, self._reference, self._noise = reference_of(self._points)
        self._archive = archive_of(self._baseline, noise_vector(self._noise))
        self._archive.load(losses(self._points), [record.episode for record in self._points])
        self._dominated = {int(row): self._covered(int(row)) for row in self._archive.members}
        self._update_volume()

    def add(self, record: EpisodeRecord) -> None:
        """Add one record. A baseline, or a second record of an episode, rebuilds everything."""
        if record.episode == 0 or record.episode in self._recorded:
            self.extend([record])
            return
        self._recorded[record.episode] = record
        if self._split:  # the baseline stands among the records, so one record is enough to be told by
            record = reported([self._recorded[0], record])[1]
        if record.status != "succeeded" or record.objectives is None:
            return
        row = len(self._points)
        self._points.append(record)
        before = set(self._archive.members.tolist())
        joined = self._archive.add(losses([record])[0], record.episode)
        for gone in before - set(self._archive.members.tolist()):
            del self._dominated[gone]
        for member in self._archive.covering(row).tolist():
            insort(self._dominated[member], record.episode)
            self._solutions.pop(member, None)
        if joined:
            self._dominated[row] = self._covered(row)
            self._update_volume()

    def document(self) -> FrontierDocument:
        """The frontier of everything added so far."""
        members: list[int] = self._archive.members.tolist()
        allowed = [row for row in members if self._meets_constraints(self._points[row])]
        knee = None
        if allowed:
            best = knee_of(self._archive.losses[allowed], noise_vector(self._noise), self._archive.episodes[allowed])
            knee = allowed[best]
        meets = set(allowed)
        solutions = [self._solution(row, meets=row in meets, knee=row == knee) for row in members]
        return FrontierDocument(
            study=self._study,
            objectives=OBJECTIVES,
            baseline=self._baseline.objectives if self._baseline else None,
            reference_point=self._reference,
            noise=self._noise if self._baseline else {},
            hypervolume=self._volume,
            solutions=tuple(sorted(solutions, key=lambda solution: solution.episode)),
            unreported=unreported(list(self._recorded.values())),
            warnings=self._warnings(),
        )

    def _warnings(self) -> tuple[str, ...]:
        reports = (self._recorded[episode].report for episode in sorted(self._recorded))
        return tuple(dict.fromkeys(warning for report in reports if report for warning in report.warnings))

    def _covered(self, row: int) -> list[int]:
        episodes = self._archive.episodes[self._archive.covered_by(row)]
        episodes.sort()
        return episodes.tolist()

    def _update_volume(self) -> None:
        members = self._archive.members
        in_order = members[self._archive.episodes[members].argsort()]  # sums round alike whatever the order of arrival
        self._volume = hypervolume(self._archive.losses[in_order], self._reference)

    def _meets_constraints(self, record: EpisodeRecord) -> bool:
        if not self._constraints:
            return True
        if self._baseline is None or self._baseline.objectives is None or record.objectives is None:
            return False
        baseline, objectives = self._baseline.objectives, record.objectives
        return all(constraint.holds(objectives, baseline) for constraint in self._constraints)

    def _solution(self, row: int, meets: bool, knee: bool) -> Solution:
        held = self._solutions.get(row)
        if held is not None and held.is_knee == knee:
            return held
        record = self._points[row]
        assert record.objectives is not None
        checkpoint = record.checkpoint.path if record.checkpoint else None
        searched = self._recorded[record.episode].objectives if self._split else None
        self._solutions[row] = Solution(
            episode=record.episode,
            strategy=record.strategy.label,
            objectives=record.objectives,
            intervals=record.intervals,
            search_accuracy=searched.accuracy if searched else None,
            checkpoint=checkpoint,
            dominates=tuple(self._dominated[row]),
            meets_constraints=meets,
            is_knee=knee,
            rationale=record.rationale,
            rebuild_command=rebuild_command(self._study, record.episode),
        )
        return self._solutions[row]


def knee_of(matrix: Matrix, epsilon: Sequence[float], episodes: Sequence[int] | NDArray[np.int64]) -> int:
    """Which member is the knee: the best compromise between accuracy and cost.

    Each loss is scaled to [0, 1] between the best and the worst of these members (0 for all where they differ by no
    more than the noise, so that noise is not stretched into a difference). The knee is the member closest to the
    perfect corner, ``sqrt(accuracy_loss² + mean(cost_losses²))``: the four costs are correlated, so together they
    weigh as much as accuracy. Ties go to the more accurate, then to the lower episode.

    Args:
        matrix: losses of the members that meet the constraints, shape ``(members, 5)``, at least one.
        epsilon: noise of each column.
        episodes: their numbers.

    Returns:
        Index into the rows of ``matrix``.
    """
    import numpy as np

    low, span = matrix.min(axis=0), np.ptp(matrix, axis=0)
    differs = span > np.asarray(epsilon)
    scaled = np.where(differs, (matrix - low) / np.where(differs, span, 1.0), 0.0)
    distance = scaled[:, 0] ** 2 + (scaled[:, 1:] ** 2).mean(axis=1)
    return int(np.lexsort((np.asarray(episodes), matrix[:, 0], np.round(distance, 12)))[0])


def rebuild_command(study: str, episode: int) -> str:
    """The command that makes an episode's checkpoint again from its recipe."""
    return f"acf rebuild {shlex.quote(study)} {episode}"


def measure_command(checkpoint: str) -> str:
    """The command that loads a stored checkpoint and measures it again."""
    return f"acf evaluate -m {shlex.quote(checkpoint)}"
