"""The five objectives as numbers: their directions, the fixed reference point, the noise, the matrix of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agentic_compression.errors import ConfigurationError
from agentic_compression.pareto import COST_FACTOR, NAMES, loss_rows, noise_of, normalised_losses, reference_point
from agentic_compression.records import EpisodeRecord, ObjectiveInfo, Objectives, content_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

__all__ = [
    "COST_FACTOR",
    "NAMES",
    "OBJECTIVES",
    "fixed_reference",
    "losses",
    "measured",
    "noise_vector",
    "normalised_losses",
    "one_per_episode",
    "reference_of",
    "unit_scale",
]

OBJECTIVES = (
    ObjectiveInfo(name="accuracy", direction="maximize", unit="fraction correct"),
    ObjectiveInfo(name="latency_ms", direction="minimize", unit="ms"),
    ObjectiveInfo(name="memory_gb", direction="minimize", unit="GB"),
    ObjectiveInfo(name="model_size_gb", direction="minimize", unit="GB"),
    ObjectiveInfo(name="co2_grams", direction="minimize", unit="g CO2e per 1,000 requests"),
)


def fixed_reference(baseline: EpisodeRecord) -> tuple[Objectives, dict[str, float]]:
    """The reference point and the noise of a study, both fixed by its baseline before the search starts.

    The reference point is the worst a candidate may be and still count: accuracy 0, and each cost twice the
    baseline's. A candidate worse than that in any objective adds no hypervolume; one merely slower than the baseline
    (a small model without fast kernels often is) still counts, at less than half the weight.

    The noise is the difference in an objective that the measurement cannot tell from none:

    * accuracy: one standard error, the half-width of the 95 % interval over 1.96; without an interval the binomial
      ``sqrt(p (1 - p) / n)`` over the ``n`` scored items;
    * latency, memory and CO2: the half-width of the 95 % interval of the baseline's repeated measurements;
    * size: 0, because bytes on disk are counted, not measured.

    Args:
        baseline: the succeeded episode 0.

    Returns:
        The reference point in the objectives' own units, and epsilon by objective name in the same units.

    Raises:
        ConfigurationError: when the record has no objectives.
    """
    objectives = baseline.objectives
    if objectives is None:
        raise ConfigurationError(
            f"the reference point needs a measured baseline, got episode {baseline.episode} with status "
            f"{baseline.status!r}; measure the baseline first (acf run)"
        )
    noise = noise_of(baseline.intervals)
    if noise["accuracy"] == 0.0:
        noise["accuracy"] = _binomial_error(baseline)
    return reference_point(objectives), noise


def reference_of(records: Sequence[EpisodeRecord]) -> tuple[EpisodeRecord | None, Objectives | None, dict[str, float]]:
    """Baseline, reference point and noise of a study; ``None, None`` and no noise without a measured episode 0."""
    baseline = next((record for record in records if record.episode == 0 and record.objectives is not None), None)
    if baseline is None:
        return None, None, dict.fromkeys(NAMES, 0.0)
    return baseline, *fixed_reference(baseline)


def one_per_episode(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """Records by rising episode number. Of two with the same number the one that finished first stands."""
    by_episode: dict[int, EpisodeRecord] = {}
    for record in records:
        held = by_episode.setdefault(record.episode, record)
        if held is not record and held != record:
            by_episode[record.episode] = min(held, record, key=lambda item: (item.finished_at, content_digest(item)))
    return [by_episode[episode] for episode in sorted(by_episode)]


def measured(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """The succeeded episodes, by rising episode number: those that take part in dominance."""
    return [r for r in one_per_episode(records) if r.status == "succeeded" and r.objectives is not None]


def losses(records: Sequence[EpisodeRecord]) -> Matrix:
    """Objectives of measured episodes with every column to be minimised.

    Returns:
        Array of shape ``(episodes, 5)`` in the order of ``NAMES``; the first column is ``1 - accuracy``, the others
        are the costs in their own units.
    """
    return loss_rows([record.objectives for record in records if record.objectives is not None])


def _binomial_error(baseline: EpisodeRecord) -> float:
    """Standard error of an accuracy whose interval is not recorded."""
    if baseline.evaluation is None:
        return 0.0
    accuracy = baseline.evaluation.accuracy
    return math.sqrt(max(accuracy.value * (1 - accuracy.value), 0.0) / accuracy.n)


def noise_vector(noise: Mapping[str, float]) -> tuple[float, ...]:
    """Epsilon by objective in the order of ``NAMES``; 0 where none is given."""
    return tuple(float(noise.get(name, 0.0)) for name in NAMES)


def unit_scale(baseline: EpisodeRecord | None) -> tuple[float, ...]:
    """What one unit of each loss is worth when losses are added: 1 of accuracy, the baseline's own of each cost."""
    if baseline is None or baseline.objectives is None:
        return (1.0,) * len(NAMES)
    return (1.0, *(float(getattr(baseline.objectives, name)) or 1.0 for name in NAMES[1:]))
