"""The frontier stands on the report side; the search side is stored beside it and never mixed in."""

from __future__ import annotations

import random

from agentic_compression.frontier import FrontierBuilder, build_frontier, hypervolume_by_episode, reported
from agentic_compression.frontier.plot import frontier_html
from agentic_compression.records import BenchmarkScore, EpisodeRecord, Estimate, Objectives, Report, Strategy


def _estimate(value: float) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - 0.02), high=min(1.0, value + 0.02), n=400)


def _report(accuracy: float, warnings: tuple[str, ...] = ()) -> Report:
    score = BenchmarkScore(task="t", metric="acc", score=_estimate(accuracy), harness="test")
    return Report(accuracy=_estimate(accuracy), benchmarks=(score,), warnings=warnings)


def _record(episode: int, search: float, report: float | None, size: float, **changes: object) -> EpisodeRecord:
    objectives = Objectives(accuracy=search, latency_ms=10, memory_gb=1, model_size_gb=size, co2_grams=1)
    values = {
        "study": "s", "episode": episode, "strategy": Strategy(), "status": "succeeded", "objectives": objectives,
        "intervals": {"accuracy": (search - 0.02, search + 0.02)},
        "report": _report(report) if report is not None else None, **changes,
    }  # fmt: skip
    return EpisodeRecord.model_validate(values)


def test_members_are_decided_and_shown_with_report_figures() -> None:
    records = [
        _record(0, 0.90, 0.90, 4.0),
        _record(1, 0.95, 0.70, 2.0),  # lucky on the search items
        _record(2, 0.85, 0.88, 2.0),
    ]
    document = build_frontier("s", records)
    members = {solution.episode: solution for solution in document.solutions}
    assert set(members) == {0, 2}
    assert members[2].objectives.accuracy == 0.88
    assert members[2].search_accuracy == 0.85
    assert members[2].intervals["accuracy"] == (0.86, 0.9)
    assert document.baseline is not None
    assert document.baseline.accuracy == 0.90
    assert document.unreported == ()


def test_an_episode_without_a_report_is_left_out_and_named_when_it_stands_on_the_search_side() -> None:
    records = [_record(0, 0.9, 0.9, 4.0), _record(1, 0.9, 0.9, 2.0), _record(2, 0.8, None, 3.0)]
    document = build_frontier("s", records)
    assert [solution.episode for solution in document.solutions] == [1]
    assert document.unreported == ()  # dominated on the search side too: nothing is missing
    without = build_frontier("s", [records[0], records[2]])
    assert [solution.episode for solution in without.solutions] == [0]
    assert [item.episode for item in without.unreported] == [2]
    assert "never asked the report items" in without.unreported[0].reason
    assert "Episode 2: not dominated on the search items" in frontier_html(without, [records[0], records[2]])


def test_a_study_that_is_not_split_is_ranked_as_it_was_measured() -> None:
    records = [_record(0, 0.9, None, 4.0), _record(1, 0.8, None, 2.0)]
    document = build_frontier("s", records)
    assert [solution.episode for solution in document.solutions] == [0, 1]
    assert all(solution.search_accuracy is None for solution in document.solutions)
    assert reported(records) == records


def test_growing_one_by_one_gives_the_same_document_in_any_order() -> None:
    draw = random.Random(0)
    records = [_record(0, 0.9, 0.9, 4.0)]
    for episode in range(1, 25):
        accuracy = draw.uniform(0.5, 0.95)
        report = accuracy + draw.uniform(-0.05, 0.05) if draw.random() < 0.7 else None
        records.append(_record(episode, accuracy, report, draw.uniform(0.5, 4)))
    records.append(EpisodeRecord(study="s", episode=25, strategy=Strategy(), status="rejected", error="rung 2: …"))
    whole = build_frontier("s", records)
    for _ in range(3):
        draw.shuffle(records)
        builder = FrontierBuilder("s")
        for record in records:
            builder.add(record)
        assert builder.document() == whole
    last = hypervolume_by_episode(reported(records))[-1]
    assert last >= whole.hypervolume > 0


def test_warnings_and_rejections_are_on_the_page() -> None:
    few = _report(0.9, ("task 't' has 9 items",))
    records = [
        _record(0, 0.9, 0.9, 4.0).model_copy(update={"report": few}),
        EpisodeRecord(study="s", episode=1, strategy=Strategy(), status="rejected", error="rung 2: at most 0.2"),
    ]
    document = build_frontier("s", records)
    assert document.warnings == ("task 't' has 9 items",)
    page = frontier_html(document, records)
    assert "rung 2: at most 0.2" in page
    assert "has 9 items" in page
    assert "report items" in page
