"""When a study ends by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentic_compression.frontier.hypervolume import has_converged, hypervolume_by_episode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentic_compression.records import EpisodeRecord, StudyConfig, TerminationReason

__all__ = ["termination"]


def termination(
    config: StudyConfig,
    records: Sequence[EpisodeRecord],
    spent_seconds: float,
    spent_co2_kg: float,
    *,
    when_converged: bool = True,
) -> TerminationReason | None:
    """Why the study ends now, or None while it goes on.

    Of several reasons the first is given: ``target_met`` (the hypervolume reached ``target_hypervolume``),
    ``max_episodes`` (that many compressed episodes are recorded, whatever their status; the baseline is extra),
    ``time_budget``, ``carbon_budget``, ``converged`` (see ``has_converged``).

    Args:
        config: the study's budget and target.
        records: everything recorded of it, in any order.
        spent_seconds: wall time spent on it so far, earlier sessions included.
        spent_co2_kg: kilograms of CO2e spent on it so far.
        when_converged: convergence ends it too; not where a number of further episodes was asked for.
    """
    target = config.target_hypervolume
    if target is not None and records and hypervolume_by_episode(records)[-1] >= target:
        return "target_met"
    if len({record.episode for record in records if record.episode > 0}) >= config.episodes:
        return "max_episodes"
    if config.budget_hours is not None and spent_seconds >= config.budget_hours * 3600:
        return "time_budget"
    if config.carbon_budget_kg is not None and spent_co2_kg >= config.carbon_budget_kg:
        return "carbon_budget"
    return "converged" if when_converged and has_converged(records) else None
