"""How far a study has come, on the items that plans are made on: its frontier and what each episode added."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agentic_compression.pareto import hypervolume, loss_rows, reference_point
from agentic_compression.records import EpisodeRecord, Objectives

__all__ = ["baseline_of", "hypervolume_alone", "hypervolume_gains", "measured", "ratios", "search_frontier"]


def measured(history: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """The succeeded episodes with finite objectives, by rising number."""
    found = [
        record
        for record in history
        if record.status == "succeeded"
        and record.objectives is not None
        and all(math.isfinite(value) for value in record.objectives.model_dump().values())
    ]
    return sorted(found, key=lambda record: record.episode)


def baseline_of(history: Sequence[EpisodeRecord]) -> Objectives | None:
    """The measured objectives of episode 0, if there are any."""
    return next((record.objectives for record in measured(history) if record.episode == 0), None)


def search_frontier(history: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """The episodes that no other is better than or equal to in all five objectives, by rising number.

    Compared exactly, without the noise that the study's own frontier allows for: a planner may see both of two close
    neighbours. Of equals the first stands.
    """
    records = measured(history)
    rows = loss_rows([record.objectives for record in records if record.objectives is not None])
    kept = []
    for index, record in enumerate(records):
        no_worse = (rows <= rows[index]).all(axis=1)
        better = no_worse & (rows < rows[index]).any(axis=1)
        equal_before = no_worse[:index] & (rows[:index] == rows[index]).all(axis=1)
        if not better.any() and not equal_before.any():
            kept.append(record)
    return kept


def hypervolume_gains(history: Sequence[EpisodeRecord]) -> dict[int, float]:
    """By episode, the share of the reference box that it added to what stood before it; 0 without a result.

    Empty without a measured baseline, which fixes the box and gains nothing itself.
    """
    baseline = baseline_of(history)
    if baseline is None:
        return {}
    reference, results = reference_point(baseline), {record.episode: record for record in measured(history)}
    seen, gains = [baseline], {}
    before = hypervolume(loss_rows(seen), reference)
    for episode in sorted({record.episode for record in history} - {0}):
        record = results.get(episode)
        if record is not None and record.objectives is not None:
            seen.append(record.objectives)
        after = hypervolume(loss_rows(seen), reference) if record is not None else before
        gains[episode], before = max(after - before, 0.0), after
    return gains


def hypervolume_alone(history: Sequence[EpisodeRecord]) -> tuple[float, dict[int, float]]:
    """The frontier's share of the reference box, and by episode the part of it that only this one dominates."""
    import numpy as np

    baseline, members = baseline_of(history), search_frontier(history)
    if baseline is None:
        return 0.0, {}
    reference = reference_point(baseline)
    rows = loss_rows([record.objectives for record in members if record.objectives is not None])
    whole = hypervolume(rows, reference)
    without = (hypervolume(np.delete(rows, place, axis=0), reference) for place in range(len(members)))
    return whole, {record.episode: max(0.0, whole - left) for record, left in zip(members, without, strict=True)}


def ratios(objectives: Objectives, baseline: Objectives) -> dict[str, float]:
    """Every cost over the baseline's; one whose baseline is 0 is left out."""
    return {
        name: float(getattr(objectives, name)) / float(getattr(baseline, name))
        for name in Objectives.model_fields
        if name != "accuracy" and getattr(baseline, name) > 0
    }
