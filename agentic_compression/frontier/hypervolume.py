"""Hypervolume of the normalised objectives, its noise, and when it stops rising."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from agentic_compression.frontier.dominance import Archive
from agentic_compression.frontier.objectives import (
    losses,
    measured,
    noise_vector,
    one_per_episode,
    reference_of,
    unit_scale,
)
from agentic_compression.pareto import hypervolume

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from agentic_compression.records import EpisodeRecord, Objectives

    Matrix = NDArray[np.float64]

__all__ = ["archive_of", "has_converged", "hypervolume", "hypervolume_by_episode", "hypervolume_noise"]


def hypervolume_noise(matrix: Matrix, reference: Objectives | None, epsilon: Sequence[float]) -> float:
    """How much of a frontier's hypervolume its measurement noise accounts for.

    Each objective in turn is made worse by its epsilon for all points at once; the losses of hypervolume are added in
    quadrature, as for independent errors. Nothing is drawn at random, so the same records give the same noise.

    Args:
        matrix: losses of the frontier's members, shape ``(points, 5)``.
        reference: the fixed reference point; without one the noise is 0.
        epsilon: noise of each column, in the objectives' units.

    Returns:
        A number in the unit of the hypervolume.
    """
    import numpy as np

    whole = hypervolume(matrix, reference)
    steps = np.diag(np.asarray(epsilon, dtype=np.float64))
    drops = [whole - hypervolume(matrix + step, reference) for step in steps if step.any()]
    return math.sqrt(sum(drop * drop for drop in drops))


def archive_of(baseline: EpisodeRecord | None, noise: Sequence[float]) -> Archive:
    """An empty archive whose grid is anchored at the baseline; exact comparison without one."""
    import numpy as np

    anchor = losses([baseline])[0] if baseline is not None else np.zeros(len(noise))
    return Archive(anchor, noise, unit_scale(baseline))


def hypervolume_by_episode(records: Sequence[EpisodeRecord]) -> tuple[float, ...]:
    """Largest hypervolume that the frontier had reached after each recorded episode.

    The hypervolume of the frontier itself can fall by less than the noise when a box's representative is replaced, so
    the largest so far is reported and the sequence never falls. An episode without a result repeats the value before.

    Args:
        records: of one study, in any order.

    Returns:
        One value in [0, 1] for each recorded episode, by rising episode number. All 0 without a measured baseline.
    """
    ordered = one_per_episode(records)
    baseline, reference, noise = reference_of(ordered)
    if reference is None:
        return (0.0,) * len(ordered)
    archive = archive_of(baseline, noise_vector(noise))
    history, value = [], 0.0
    for record in ordered:
        if record.status == "succeeded" and record.objectives is not None:
            joined = archive.add(losses([record])[0], record.episode)
            value = max(value, hypervolume(archive.losses[archive.members], reference)) if joined else value
        history.append(value)
    return tuple(history)


def has_converged(records: Sequence[EpisodeRecord], window: int = 5) -> bool:
    """Whether the last ``window`` compressed episodes together did not raise the hypervolume beyond its noise.

    The rise over the whole window is compared with ``hypervolume_noise`` of the frontier before it. That is stricter
    than asking it of each episode alone: five small steps that add up to more than the noise are progress. Episodes
    without a result count as episodes that raised nothing; but a study none of whose compressed episodes succeeded
    has not converged, it has found nothing.

    Args:
        records: of one study, in any order.
        window: compressed episodes in a row, at least 1.
    """
    ordered = one_per_episode(records)
    compressed = [record for record in ordered if record.episode > 0]
    if len(compressed) < window or not any(record.status == "succeeded" for record in compressed):
        return False
    before = ordered[:-window]
    baseline, reference, noise = reference_of(before)
    if reference is None:
        return False
    points, epsilon = measured(before), noise_vector(noise)
    archive = archive_of(baseline, epsilon)
    archive.load(losses(points), [record.episode for record in points])
    spread = hypervolume_noise(archive.losses[archive.members], reference, epsilon)
    history = hypervolume_by_episode(ordered)
    return history[-1] - history[len(before) - 1] <= spread + 1e-12
