"""From the figures that plans are made on to the figures that are reported.

While a study searches, episodes are compared on the search side of the items. What it reports is the accuracy on the
report side, which was measured for the baseline and for every episode that stood among its rivals when it finished.
The other objectives do not depend on the items and are the same on both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentic_compression.frontier.objectives import losses, measured, noise_vector, one_per_episode, reference_of
from agentic_compression.records import EpisodeRecord, Excluded

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["displayed", "is_split", "reported", "unreported"]


def is_split(records: Sequence[EpisodeRecord]) -> bool:
    """Whether the baseline, and with it the study, has figures of the report side."""
    return any(record.episode == 0 and record.report is not None for record in records)


def reported(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """The same episodes with the accuracy of the report side; those without one are shown without a result.

    Records of a study that is not split are given back as they are.
    """
    if not is_split(records):
        return list(records)
    return [_with_report(record) or _without_result(record) for record in records]


def displayed(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """The same episodes with the accuracy of the report side where there is one, else that of the search side."""
    return [_with_report(record) or record for record in records]


def unreported(records: Sequence[EpisodeRecord]) -> tuple[Excluded, ...]:
    """Episodes that stand on the search side and have no figures of the report side, so that they cannot be ranked.

    An episode that was dominated when it finished is not asked the report side. It can come to stand later, when the
    records of those that dominated it are gone, or when two processes finished episodes at once.
    """
    from agentic_compression.frontier.hypervolume import archive_of

    merged = one_per_episode(records)
    points = measured(merged)
    if not is_split(merged) or all(record.report is not None for record in points):
        return ()
    baseline, _, noise = reference_of(points)
    archive = archive_of(baseline, noise_vector(noise))
    archive.load(losses(points), [record.episode for record in points])
    standing = [points[row] for row in archive.members.tolist()]
    return tuple(
        Excluded(
            episode=record.episode,
            reason="not dominated on the search items now, but it was when it finished, so it was never asked the "
            "report items; a frontier cannot mix the two: run its strategy in a study of its own to rank it",
        )
        for record in sorted(standing, key=lambda record: record.episode)
        if record.report is None
    )


def _with_report(record: EpisodeRecord) -> EpisodeRecord | None:
    if record.report is None or record.objectives is None:
        return None
    accuracy = record.report.accuracy
    objectives = record.objectives.model_copy(update={"accuracy": min(max(accuracy.value, 0.0), 1.0)})
    intervals = {**record.intervals, "accuracy": (accuracy.low, accuracy.high)}
    return record.model_copy(update={"objectives": objectives, "intervals": intervals})


def _without_result(record: EpisodeRecord) -> EpisodeRecord:
    return record.model_copy(update={"objectives": None, "intervals": {}})
