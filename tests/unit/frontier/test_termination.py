"""When a study ends by itself."""

from __future__ import annotations

import pytest

from agentic_compression.frontier import has_converged, termination
from agentic_compression.records import EpisodeRecord, StudyConfig
from tests.unit.frontier.studies import BASELINE_VALUES, Values, episode

BASE = episode(0, BASELINE_VALUES)


def _scaled(number: int, share: float) -> EpisodeRecord:
    accuracy, *costs = BASELINE_VALUES
    values: Values = (accuracy, *(cost * share for cost in costs))  # type: ignore[assignment]
    return episode(number, values)


def _rising(count: int) -> list[EpisodeRecord]:
    return [BASE, *(_scaled(n, 1 - 0.1 * n) for n in range(1, count + 1))]


def _flat(count: int) -> list[EpisodeRecord]:
    return [BASE, _scaled(1, 0.5), *(_scaled(n, 0.8) for n in range(2, count + 1))]


@pytest.mark.parametrize(
    ("options", "records", "seconds", "kilograms", "expected"),
    [
        ({"episodes": 4}, _rising(3), 0, 0, None),
        ({"episodes": 3}, _rising(3), 0, 0, "max_episodes"),
        ({"episodes": 3}, [BASE, episode(1, None), episode(2, None), episode(3, None)], 0, 0, "max_episodes"),
        ({"episodes": 9, "budget_hours": 1}, _rising(3), 3599, 0, None),
        ({"episodes": 9, "budget_hours": 1}, _rising(3), 3600, 0, "time_budget"),
        ({"episodes": 9, "carbon_budget_kg": 0.5}, _rising(3), 0, 0.49, None),
        ({"episodes": 9, "carbon_budget_kg": 0.5}, _rising(3), 0, 0.5, "carbon_budget"),
        ({"episodes": 99}, _flat(6), 0, 0, "converged"),
        ({"episodes": 99}, _flat(5), 0, 0, None),
        ({"episodes": 99}, _rising(8), 0, 0, None),
        ({"episodes": 9, "target_hypervolume": 0.03}, [BASE], 0, 0, "target_met"),
        ({"episodes": 9, "target_hypervolume": 0.9}, _rising(3), 0, 0, None),
        ({"episodes": 3, "target_hypervolume": 0.03}, _rising(3), 0, 0, "target_met"),
        ({"episodes": 9, "target_hypervolume": 0.03}, [], 0, 0, None),
        ({"episodes": 1, "budget_hours": 1}, [BASE], 7200, 0, "time_budget"),
    ],
)
def test_termination(
    options: dict[str, float], records: list[EpisodeRecord], seconds: float, kilograms: float, expected: str | None
) -> None:
    config = StudyConfig.model_validate({"model": "demo", "dataset": "demo", **options})
    assert termination(config, records, seconds, kilograms) == expected
    assert termination(config, records[::-1], seconds, kilograms) == expected


@pytest.mark.parametrize(
    ("options", "seconds", "kilograms", "expected"),
    [
        ({"episodes": 7}, 0, 0, None),
        ({"episodes": 6}, 0, 0, "max_episodes"),
        ({"episodes": 7, "budget_hours": 1}, 3600, 0, "time_budget"),
        ({"episodes": 7, "carbon_budget_kg": 0.5}, 0, 0.5, "carbon_budget"),
        ({"episodes": 7, "target_hypervolume": 0.03}, 0, 0, "target_met"),
    ],
)
def test_further_episodes_go_on_after_convergence_and_end_by_all_else(
    options: dict[str, float], seconds: float, kilograms: float, expected: str | None
) -> None:
    config = StudyConfig.model_validate({"model": "demo", "dataset": "demo", **options})
    assert termination(config, _flat(6), seconds, kilograms, when_converged=False) == expected
    assert termination(config, _flat(6), seconds, kilograms) == (expected or "converged")


def test_failures_count_as_no_progress_but_finding_nothing_is_not_convergence() -> None:
    failures = [episode(number, None) for number in range(2, 7)]
    assert has_converged([BASE, _scaled(1, 0.5), *failures])
    assert not has_converged([BASE, *failures])
    assert not has_converged([episode(0, None), _scaled(1, 0.5), *failures])


def test_small_steps_that_add_up_to_more_than_the_noise_are_progress() -> None:
    steps = [BASE, _scaled(1, 0.60), *(_scaled(n, 0.60 - 0.02 * (n - 1)) for n in range(2, 7))]
    assert not has_converged(steps)
    within_noise = [BASE, _scaled(1, 0.60), *(_scaled(n, 0.60 - 0.002 * (n - 1)) for n in range(2, 7))]
    assert has_converged(within_noise)
