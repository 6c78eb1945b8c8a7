"""Dominance, hypervolume and the document against brute force, and the properties that make the frontier a function."""

from __future__ import annotations

import math
import random
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.errors import ConfigurationError
from agentic_compression.frontier import (
    NAMES,
    FrontierBuilder,
    build_frontier,
    fixed_reference,
    hypervolume_by_episode,
)
from agentic_compression.frontier.hypervolume import hypervolume
from agentic_compression.frontier.objectives import losses
from agentic_compression.records import Constraint, EpisodeRecord, FrontierDocument
from tests.unit.frontier.studies import BASELINE_VALUES, NO_NOISE, NOISE, Values, episode, records_strategy


def _loss(record: EpisodeRecord) -> tuple[float, ...]:
    assert record.objectives is not None
    values = record.objectives.model_dump()
    return (1 - values["accuracy"], *(values[name] for name in NAMES[1:]))


def _dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def _box(record: EpisodeRecord, baseline: EpisodeRecord) -> tuple[float, ...]:
    _, noise = fixed_reference(baseline)
    cells = []
    for name, value, anchor in zip(NAMES, _loss(record), _loss(baseline), strict=True):
        epsilon = noise[name]
        cells.append(math.floor((value - anchor) / epsilon + 0.5 + 1e-9) if epsilon else value)
    return tuple(cells)


def _members(document: FrontierDocument) -> list[int]:
    return [solution.episode for solution in document.solutions]


def _brute_force_hypervolume(records: list[EpisodeRecord]) -> float:
    """Inclusion-exclusion over all subsets: the union of the boxes between each point and the reference point."""
    reference = [1.0, *(2 * value for value in BASELINE_VALUES[1:])]
    points = [[x / r for x, r in zip(_loss(record), reference, strict=True)] for record in records]
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in combinations(points, size):
            corner = [max(column) for column in zip(*subset, strict=True)]
            total -= (-1) ** size * math.prod(max(1 - x, 0.0) for x in corner)
    return total


@settings(max_examples=150, deadline=None)
@given(records_strategy(noise=NO_NOISE))
def test_without_noise_the_frontier_is_the_exact_pareto_set(records: list[EpisodeRecord]) -> None:
    found = [record for record in records if record.objectives]
    first_of_equals = {_loss(record): record for record in reversed(found)}.values()
    expected = {
        record.episode
        for record in first_of_equals
        if not any(_dominates(_loss(other), _loss(record)) for other in found)
    }
    assert set(_members(build_frontier("s", records))) == expected


@settings(max_examples=150, deadline=None)
@given(records_strategy(noise=NOISE))
def test_with_noise_the_frontier_has_one_member_in_each_nondominated_box(records: list[EpisodeRecord]) -> None:
    found = [record for record in records if record.objectives]
    boxes = {record.episode: _box(record, records[0]) for record in found}
    expected = {box for box in boxes.values() if not any(_dominates(other, box) for other in boxes.values())}
    members = _members(build_frontier("s", records))
    assert sorted(boxes[number] for number in members) == sorted(expected)
    for record in found:  # no member is exactly dominated
        if record.episode in members:
            assert not any(_dominates(_loss(other), _loss(record)) for other in found)


@settings(max_examples=100, deadline=None)
@given(records_strategy(), st.randoms(use_true_random=False))
def test_frontier_does_not_depend_on_the_order_or_on_repetition(
    records: list[EpisodeRecord], shuffle: random.Random
) -> None:
    document = build_frontier("s", records)
    shuffled = [*records, *records[:3]]
    shuffle.shuffle(shuffled)
    assert build_frontier("s", shuffled) == document
    assert document.solutions, "never empty with a measured baseline"
    assert _members(document) == sorted(_members(document))


@settings(max_examples=60, deadline=None)
@given(records_strategy(), st.randoms(use_true_random=False))
def test_adding_one_by_one_equals_building_from_scratch(records: list[EpisodeRecord], shuffle: random.Random) -> None:
    order = list(records)
    shuffle.shuffle(order)
    constraint = [Constraint.parse("size_ratio<=0.9")]
    builder = FrontierBuilder("s", constraint)
    for index, record in enumerate(order):
        builder.add(record)
        assert builder.document() == build_frontier("s", order[: index + 1], constraint)


@settings(max_examples=100, deadline=None)
@given(records_strategy())
def test_removing_what_is_not_on_the_frontier_changes_no_solution(records: list[EpisodeRecord]) -> None:
    document = build_frontier("s", records)
    members = _members(document)
    for record in records[1:]:
        if record.episode not in members:
            without = build_frontier("s", [other for other in records if other is not record])
            assert _members(without) == members
            assert without.hypervolume == document.hypervolume
    kept = [record for record in records if record.episode in {0, *members}]
    assert _members(build_frontier("s", kept)) == members  # idempotent


@settings(max_examples=60, deadline=None)
@given(records_strategy())
def test_dominates_lists_cover_every_measured_episode_off_the_frontier(records: list[EpisodeRecord]) -> None:
    document = build_frontier("s", records)
    boxes = {record.episode: _box(record, records[0]) for record in records if record.objectives}
    members = set(_members(document))
    for solution in document.solutions:
        mine = boxes[solution.episode]
        expected = [n for n, box in boxes.items() if n != solution.episode and (_dominates(mine, box) or mine == box)]
        assert list(solution.dominates) == sorted(expected)
        assert not members & set(solution.dominates)
    assert members | {n for s in document.solutions for n in s.dominates} == set(boxes)


@settings(max_examples=60, deadline=None)
@given(records_strategy(max_size=6))
def test_hypervolume_equals_inclusion_exclusion(records: list[EpisodeRecord]) -> None:
    document = build_frontier("s", records)
    members = [record for record in records if record.episode in _members(document)]
    assert document.hypervolume == pytest.approx(_brute_force_hypervolume(members), abs=1e-12)
    found = [record for record in records if record.objectives]
    everything = hypervolume(losses(found), document.reference_point)
    assert everything == pytest.approx(_brute_force_hypervolume(found), abs=1e-12)
    assert document.hypervolume <= everything + 1e-12


def test_hypervolume_equals_an_exact_grid_sweep() -> None:
    draw = random.Random(1)
    # coordinates on tenths of the reference, so that counting cells of side 0.1 is exact
    steps = [[draw.randrange(10) for _ in range(5)] for _ in range(8)]
    scale = [1.0, *(2 * value for value in BASELINE_VALUES[1:])]
    records = [episode(0, BASELINE_VALUES, NO_NOISE)]
    for number, row in enumerate(steps, start=1):
        loss = [s / 10 * r for s, r in zip(row, scale, strict=True)]
        records.append(episode(number, (1 - loss[0], *loss[1:]), NO_NOISE))
    rows = [[5, 5, 5, 5, 5], *steps]
    covered = sum(
        any(all(p <= c for p, c in zip(row, cell, strict=True)) for row in rows)
        for cell in product(range(10), repeat=5)
    )
    assert build_frontier("s", records).hypervolume == pytest.approx(covered / 10**5, abs=1e-9)


def test_baseline_alone_has_the_hypervolume_of_its_own_box() -> None:
    document = build_frontier("s", [episode(0, BASELINE_VALUES)])
    assert document.hypervolume == pytest.approx(0.5 * 0.5**4)
    assert _members(document) == [0]


def test_point_beyond_the_reference_adds_nothing() -> None:
    slow: Values = (0.9, 201.0, 1.0, 0.1, 1.0)
    alone = build_frontier("s", [episode(0, BASELINE_VALUES)])
    both = build_frontier("s", [episode(0, BASELINE_VALUES), episode(1, slow)])
    assert _members(both) == [0, 1]
    assert both.hypervolume == alone.hypervolume


@settings(max_examples=60, deadline=None)
@given(records_strategy(), st.randoms(use_true_random=False))
def test_hypervolume_by_episode_never_falls_and_fits_the_documents(
    records: list[EpisodeRecord], shuffle: random.Random
) -> None:
    shuffled = list(records)
    shuffle.shuffle(shuffled)
    history = hypervolume_by_episode(shuffled)
    documents = [build_frontier("s", records[: index + 1]).hypervolume for index in range(len(records))]
    assert len(history) == len(records)
    assert list(history) == pytest.approx([max(documents[: index + 1]) for index in range(len(documents))])


def test_difference_within_noise_is_not_better_and_a_real_one_is() -> None:
    accuracy, latency, memory, size, co2 = BASELINE_VALUES
    baseline = episode(0, BASELINE_VALUES)
    within = episode(1, (accuracy + 0.02, latency - 2.0, memory - 0.09, size, co2 - 0.2))
    assert len(build_frontier("s", [baseline, within]).solutions) == 1
    worse_within_noise_but_smaller = episode(2, (accuracy - 0.02, latency + 2.0, memory + 0.09, size / 2, co2 + 0.2))
    assert _members(build_frontier("s", [baseline, worse_within_noise_but_smaller])) == [2]
    truly_worse = episode(3, (accuracy - 0.2, latency, memory, size / 2, co2))
    assert _members(build_frontier("s", [baseline, truly_worse])) == [0, 3]
    one_byte_smaller = episode(4, (accuracy, latency, memory, size - 1e-9, co2))
    assert _members(build_frontier("s", [baseline, one_byte_smaller])) == [4]


def test_noise_and_reference_come_from_the_baseline() -> None:
    reference, noise = fixed_reference(episode(0, BASELINE_VALUES))
    assert reference.model_dump() == pytest.approx(
        {"accuracy": 0, "latency_ms": 200, "memory_gb": 8, "model_size_gb": 4, "co2_grams": 20}
    )
    assert noise == pytest.approx(dict(zip(NAMES, NOISE, strict=True)))
    with pytest.raises(ConfigurationError, match="needs a measured baseline, got episode 0 with status 'oom'"):
        fixed_reference(episode(0, None, status="oom"))


def test_study_without_a_measured_baseline_is_compared_exactly() -> None:
    records = [episode(0, None, status="oom"), episode(1, (0.5, 9, 1, 1, 1)), episode(2, (0.5001, 9, 1, 1, 1))]
    document = build_frontier("s", records, [Constraint.parse("accuracy_drop<=0.1")])
    assert _members(document) == [2]
    assert document.reference_point is None
    assert document.hypervolume == 0
    assert not document.solutions[0].meets_constraints
    assert hypervolume_by_episode(records) == (0.0, 0.0, 0.0)
    assert build_frontier("s", []).solutions == ()


def test_of_two_records_with_one_number_the_first_to_finish_stands() -> None:
    late = episode(1, (0.9, 1, 1, 1, 1)).model_copy(update={"finished_at": "2026-01-02"})
    early = episode(1, (0.8, 1, 1, 1, 1)).model_copy(update={"finished_at": "2026-01-01"})
    for records in ([late, early], [early, late]):
        assert build_frontier("s", records).solutions[0].objectives == early.objectives


def test_knee_is_the_balanced_member_that_meets_the_constraints() -> None:
    records = [
        episode(0, (0.9, 100, 4, 2, 10), NO_NOISE),
        episode(1, (0.85, 40, 1.6, 0.8, 4), NO_NOISE),  # much cheaper for little accuracy
        episode(2, (0.1, 20, 0.8, 0.4, 2), NO_NOISE),
        episode(3, (0.5, 30, 1.2, 0.6, 3), NO_NOISE),
    ]
    assert [s.episode for s in build_frontier("s", records).solutions if s.is_knee] == [1]
    small = build_frontier("s", records, [Constraint.parse("size_ratio<=0.3")])
    assert [s.episode for s in small.solutions if s.is_knee] == [3]
    assert [s.episode for s in small.solutions if s.meets_constraints] == [2, 3]
    none = build_frontier("s", records, [Constraint.parse("accuracy>=0.99")])
    assert not any(s.is_knee or s.meets_constraints for s in none.solutions)


def test_solution_says_how_to_rebuild_it_and_promises_no_server() -> None:
    solution = build_frontier("my study", [episode(0, BASELINE_VALUES)]).solutions[0]
    assert solution.rebuild_command == "acf rebuild 'my study' 0"
    assert solution.serve_command == ""
