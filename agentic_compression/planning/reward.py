"""The reward of an episode: one number for what it was worth, reported, and learned from by the bandit and by PBT.

For a measured episode::

    reward = U / 2 + H / 2 - P        within [-1, 1]

*U*, the utility, in [0, 1], is the weighted mean of one share per objective, each normalised by the baseline: of
accuracy ``accuracy / baseline`` (at most 1), of a cost ``1 - cost / (2 * baseline)`` (at least 0), so that a cost is
worth 1 when it is nothing, 1/2 at the baseline and 0 from the reference point on. Accuracy weighs 1/2 and each of the
four correlated costs 1/8, as for the frontier's knee.

*H*, in [0, 1], is the share of the hypervolume reached with this episode that was not there before it: 0 when it is
dominated, near 1 when what stood before was next to nothing.

*P*, in [0, 1], is the sum over violated constraints of ``(1 + violation) / 2``, at most 1, where the violation, in
(0, 1], is how far the value lies beyond the bound (see ``violation``): breaking one costs at least half of all that can
be earned, so that no such episode beats a faithful one by its utility alone.

An episode that failed, ran out of memory or out of time, or could not be carried out has the lowest reward, -1. A
rejected one cannot change the frontier (``H = 0``); what was read of it before it was rejected counts and what was not
counts as the reference point, the worst that is still of interest; a constraint on what was not read costs nothing. The
baseline has no reward: it is the yardstick.

Nothing is drawn at random; latency, memory and CO2 are measured, so that two runs of one study differ by their noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from agentic_compression.pareto import COST_FACTOR, NAMES, hypervolume, loss_rows, reference_point
from agentic_compression.records import Constraint, EpisodeRecord, Objectives

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = [
    "LOWEST",
    "WEIGHTS",
    "assumed",
    "baseline_objectives",
    "judged_on",
    "known_values",
    "present_rewards",
    "rewards",
    "utility",
    "violation",
]

LOWEST = -1.0
"""Of an episode that gave no result."""

WEIGHTS: Mapping[str, float] = MappingProxyType({name: 0.5 if name == "accuracy" else 0.125 for name in NAMES})
"""By objective; they sum to 1."""


def rewards(
    history: Sequence[EpisodeRecord],
    constraints: Sequence[Constraint] = (),
    weights: Mapping[str, float] = WEIGHTS,
) -> dict[int, float]:
    """The reward of every compressed episode, by its number.

    Args:
        history: everything recorded of a study, in any order.
        constraints: of the study.
        weights: of the objectives, not negative, of sum 1.

    Returns:
        Numbers in [-1, 1]. Without a measured baseline nothing is known of the others: only failures are rewarded.
    """
    yardstick = _Yardstick.of(history, constraints, weights)
    if yardstick is None:
        return {record.episode: LOWEST for record in _compressed(history) if _gave_nothing(record)}
    archive = _Archive(yardstick.baseline)
    found = {}
    for record in _compressed(history):
        objectives = _measured(record)
        found[record.episode] = yardstick.reward(record, archive.add(objectives) if objectives else 0.0)
    return found


def present_rewards(
    history: Sequence[EpisodeRecord],
    constraints: Sequence[Constraint] = (),
    weights: Mapping[str, float] = WEIGHTS,
) -> dict[int, float]:
    """The same as if each episode had come last, so that early and late ones can be compared with one another.

    Args:
        history: everything recorded of a study, in any order.
        constraints: of the study.
        weights: of the objectives, not negative, of sum 1.
    """
    yardstick = _Yardstick.of(history, constraints, weights)
    if yardstick is None:
        return rewards(history)
    measured = [(record, _measured(record)) for record in _compressed(history)]
    archive = _Archive(yardstick.baseline)
    for _, objectives in measured:
        if objectives:
            archive.add(objectives)
    return {
        record.episode: yardstick.reward(record, archive.part_of(objectives) if objectives else 0.0)
        for record, objectives in measured
    }


def utility(objectives: Objectives, baseline: Objectives, weights: Mapping[str, float] = WEIGHTS) -> float:
    """*U* of the module's formula, in [0, 1]."""
    return sum(weights[name] * _share(name, objectives, baseline) for name in NAMES)


def violation(constraint: Constraint, objectives: Objectives, baseline: Objectives) -> float:
    """How far the bound is broken, in (0, 1]; 0 where it holds.

    For bounds on accuracy in accuracy's own unit; for others the distance over the larger of value and bound, which is
    1 only where the one is nothing beside the other.
    """
    if constraint.holds(objectives, baseline):
        return 0.0
    if constraint.quantity in {"accuracy", "accuracy_drop"}:
        value = objectives.accuracy if constraint.quantity == "accuracy" else baseline.accuracy - objectives.accuracy
        beyond = abs(value - constraint.bound)
    else:
        whole = baseline.model_size_gb
        ratio = constraint.quantity == "size_ratio"
        value = objectives.model_size_gb / whole if ratio else float(getattr(objectives, constraint.quantity))
        beyond = abs(value - constraint.bound) / max(abs(value), abs(constraint.bound), 1e-12)
    return min(1.0, max(beyond, 1e-6))


def judged_on(constraint: Constraint) -> str:
    """The objective that a constraint bounds, directly or in proportion to the baseline."""
    derived = {"accuracy_drop": "accuracy", "size_ratio": "model_size_gb"}
    return derived.get(constraint.quantity, constraint.quantity)


def known_values(record: EpisodeRecord) -> dict[str, float]:
    """Objectives that were read of an episode: all of a measured one, of a rejected one those that its rungs read."""
    if objectives := _measured(record):
        return {name: float(getattr(objectives, name)) for name in NAMES}
    if record.status != "rejected":
        return {}
    return {
        reading.quantity: reading.value
        for reading in record.screening
        if reading.quantity in NAMES and math.isfinite(reading.value) and reading.value >= 0
    }


def assumed(record: EpisodeRecord, baseline: Objectives) -> Objectives:
    """What was read of an episode, and the reference point where nothing was."""
    values = reference_point(baseline).model_dump() | known_values(record)
    return Objectives(**{**values, "accuracy": min(1.0, values["accuracy"])})


def baseline_objectives(history: Sequence[EpisodeRecord]) -> Objectives | None:
    """Of episode 0, where it was measured."""
    return next((found for record in history if record.episode == 0 and (found := _measured(record))), None)


class _Yardstick:
    """What every episode of a study is measured against."""

    def __init__(self, baseline: Objectives, constraints: Sequence[Constraint], weights: Mapping[str, float]) -> None:
        self.baseline, self._constraints, self._weights = baseline, constraints, weights

    @classmethod
    def of(
        cls, history: Sequence[EpisodeRecord], constraints: Sequence[Constraint], weights: Mapping[str, float]
    ) -> _Yardstick | None:
        """None without a measured baseline."""
        baseline = baseline_objectives(history)
        return None if baseline is None else cls(baseline, constraints, weights)

    def reward(self, record: EpisodeRecord, added: float) -> float:
        """The reward of an episode that added this share."""
        if _gave_nothing(record):
            return LOWEST
        objectives, known = assumed(record, self.baseline), known_values(record)
        broken = [
            violation(constraint, objectives, self.baseline)
            for constraint in self._constraints
            if judged_on(constraint) in known
        ]
        penalty = min(1.0, sum((1 + beyond) / 2 for beyond in broken if beyond > 0))
        value = (utility(objectives, self.baseline, self._weights) + added) / 2 - penalty
        return min(1.0, max(LOWEST, value))


class _Archive:
    """What is not dominated so far, and how much hypervolume it has; the baseline stands in it from the start."""

    def __init__(self, baseline: Objectives) -> None:
        self._reference = reference_point(baseline)
        self._members = self._all = loss_rows([baseline])
        self._volume = hypervolume(self._members, self._reference)

    def add(self, objectives: Objectives) -> float:
        """Take a point in; the share of the volume reached with it that it added."""
        import numpy as np

        row = loss_rows([objectives])
        self._all = np.concatenate([self._all, row])
        if (self._members <= row).all(axis=1).any():
            return 0.0
        gain = self._beyond(row, self._members)
        kept = self._members[~(row <= self._members).all(axis=1)]
        self._members, self._volume = np.concatenate([kept, row]), self._volume + gain
        return gain / self._volume if self._volume > 0 else 0.0

    def part_of(self, objectives: Objectives) -> float:
        """The share of the volume that only this point and its equals dominate."""
        row = loss_rows([objectives])
        same = (self._members == row).all(axis=1)
        if not same.any() or self._volume <= 0:
            return 0.0
        others = self._all[~(self._all == row).all(axis=1)]  # those it dominates come to stand without it
        return self._beyond(row, others) / self._volume

    def _beyond(self, row: Matrix, others: Matrix) -> float:
        """Volume of one point's box less what the others cover of it."""
        import numpy as np

        covered = np.maximum(others, row)
        return max(0.0, hypervolume(row, self._reference) - hypervolume(covered, self._reference))


def _share(name: str, objectives: Objectives, baseline: Objectives) -> float:
    value, whole = float(getattr(objectives, name)), float(getattr(baseline, name))
    if name == "accuracy":
        return min(1.0, value / whole) if whole > 0 else 1.0
    if whole <= 0:
        return 1.0 if value <= 0 else 0.0
    return max(0.0, 1.0 - value / (COST_FACTOR * whole))


def _compressed(history: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    found = {record.episode: record for record in history if record.episode > 0}
    return [found[episode] for episode in sorted(found)]


def _measured(record: EpisodeRecord) -> Objectives | None:
    """The objectives of an episode that succeeded with finite ones."""
    if record.status != "succeeded" or record.objectives is None:
        return None
    return record.objectives if all(map(math.isfinite, record.objectives.model_dump().values())) else None


def _gave_nothing(record: EpisodeRecord) -> bool:
    return record.status != "rejected" and _measured(record) is None
