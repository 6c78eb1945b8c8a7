"""Which episodes are ranked together: the baseline's environment, finite numbers, any engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentic_compression.frontier import build_frontier, comparable, excluded, hypervolume_by_episode
from agentic_compression.records import Environment, EpisodeRecord, Objectives
from agentic_compression.testing.records import make_evaluation, make_plan, make_record

HERE = Environment(
    device="cpu",
    cpu="A",
    threads=1,
    packages={"torch": "2.13", "transformers": "5.17", "lm-eval": "0.4.13", "xllamacpp": "1", "numpy": "2.2"},
)


def _records(folder: Path, second: Environment | None, **changes: Any) -> list[EpisodeRecord]:
    made = [
        make_record(make_plan("s", 0), folder / "0", make_evaluation(), environment=HERE),
        make_record(make_plan("s", 1, "rtn:bits=8"), folder / "1", make_evaluation(size_bytes=10), environment=second),
    ]
    return [made[0], made[1].model_copy(update=changes)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": "cuda:0 (other)"}, "device is cuda:0 (other), the baseline's cpu"),
        ({"cpu": "B"}, "cpu is B"),
        ({"threads": 2}, "threads is 2"),
        ({"packages": {**HERE.packages, "torch": "2.14"}}, "torch is 2.14, the baseline's 2.13"),
        ({"packages": {**HERE.packages, "lm-eval": "0.5"}}, "lm-eval is 0.5"),
        ({"runtime": "llama.cpp", "packages": {**HERE.packages, "xllamacpp": "2"}}, "xllamacpp is 2"),
    ],
)
def test_another_environment_is_excluded_with_the_reason(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    records = _records(tmp_path, HERE.model_copy(update=changes))
    (found,) = excluded(records)
    assert found.episode == 1
    assert words in found.reason
    ranked = comparable(records)
    assert [solution.episode for solution in build_frontier("s", ranked).solutions] == [0]
    assert len(hypervolume_by_episode(ranked)) == 2
    assert comparable(records)[0] is records[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"runtime": "llama.cpp"},
        {"packages": {**HERE.packages, "xllamacpp": "2"}},  # of an engine that did not run this one
        {"packages": {**HERE.packages, "numpy": "2.3"}},
        {"packages": {}},
    ],
)
def test_the_engine_and_what_changes_no_number_are_not_compared(tmp_path: Path, changes: dict[str, Any]) -> None:
    records = _records(tmp_path, HERE.model_copy(update=changes))
    assert excluded(records) == ()
    assert comparable(records) == records
    assert {solution.episode for solution in build_frontier("s", comparable(records)).solutions} == {1}


def test_numbers_that_are_not_finite_are_excluded_and_can_be_read_again(tmp_path: Path) -> None:
    broken = Objectives(
        accuracy=0.9, latency_ms=float("inf"), memory_gb=float("inf"), model_size_gb=0.1, co2_grams=float("inf")
    )
    records = _records(tmp_path, HERE, objectives=broken, evaluation=None)
    assert EpisodeRecord.model_validate_json(records[1].model_dump_json()) == records[1]
    (found,) = excluded(records)
    assert "latency_ms is inf" in found.reason
    assert [record.status for record in comparable(records)] == ["succeeded", "failed"]
