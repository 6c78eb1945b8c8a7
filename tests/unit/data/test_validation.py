from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentic_compression.data import report_html, require_valid, resolve_dataset, validate_dataset, write_report
from agentic_compression.errors import DatasetError
from agentic_compression.records import DatasetSpec, DatasetTask, TaskKind, ValidationCheck, ValidationReport
from agentic_compression.settings import Settings

_GOOD: dict[str, Any] = {"id": "a", "question": "q", "choices": ["x", "y"], "answer": 1}


def _spec(path: Path, items: list[dict[str, Any]], kind: TaskKind = "multiple_choice") -> DatasetSpec:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    task = DatasetTask(name="t", kind=kind, path=str(path), items=len(items), digest="0")
    return DatasetSpec(dataset="d", name="d", tasks=(task,), digest="0")


_BAD: list[tuple[str, TaskKind, list[dict[str, Any]], str, str]] = [
    ("duplicate id", "multiple_choice", [_GOOD, {**_GOOD, "question": "r"}], "unique", "id"),
    ("null id", "multiple_choice", [{**_GOOD, "id": None}, {**_GOOD, "question": "r"}], "not_be_null", "id"),
    ("empty question", "multiple_choice", [_GOOD, {**_GOOD, "id": "b", "question": " "}], "lengths", "question"),
    ("one choice", "multiple_choice", [{**_GOOD, "choices": ["x"], "answer": 0}], "between", "choice_count"),
    ("empty choice", "multiple_choice", [{**_GOOD, "choices": ["x", " "]}], "between", "shortest_choice"),
    ("equal choices", "multiple_choice", [{**_GOOD, "choices": ["x", "x"]}], "equal", "distinct_choices"),
    ("answer too large", "multiple_choice", [{**_GOOD, "answer": 2}], "greater_than", "answer_index"),
    ("answer negative", "multiple_choice", [{**_GOOD, "answer": -1}], "between", "answer_index"),
    ("empty answer", "generation", [{"id": "a", "question": "q", "answer": " "}], "lengths", "answer"),
    ("empty text", "text", [{"id": "a", "text": ""}], "lengths", "text"),
]


@pytest.mark.parametrize(("name", "kind", "items", "expectation", "column"), _BAD, ids=[bad[0] for bad in _BAD])
def test_validate_dataset_finds_each_kind_of_damage(
    tmp_path: Path, name: str, kind: TaskKind, items: list[dict[str, Any]], expectation: str, column: str
) -> None:
    report = validate_dataset(_spec(tmp_path / "x.jsonl", items, kind))
    assert not report.success
    failed = [check for check in report.checks if not check.success and "(warning)" not in check.expectation]
    assert {check.column for check in failed} == {column}
    assert any(expectation in check.expectation and check.unexpected_count >= 1 for check in failed)
    with pytest.raises(DatasetError, match=r"not valid: expect_.* of column") as caught:
        require_valid(report)
    assert "t line" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validate_dataset_passes_and_warns_of_repeated_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = _spec(tmp_path / "x.jsonl", [_GOOD, {**_GOOD, "id": "b"}, {**_GOOD, "id": "c", "question": "r"}])
    report = validate_dataset(spec)
    assert report.success
    require_valid(report)
    (warning,) = [check for check in report.checks if not check.success]
    assert warning.unexpected_count == 2
    assert report.items == 3
    assert report.library_version == "great-expectations 1.24.1"
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]  # nothing written beside the data


def test_validate_dataset_accepts_what_resolve_writes(home: Path) -> None:
    for name, line in {
        "mc": {"question": "q{}", "choices": ["x", "y"], "answer": "B"},
        "gen": {"question": "q{}", "answer": "a"},
        "text": {"text": "some text {}"},
    }.items():
        path = home / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line).replace("{}", str(n)) + "\n" for n in range(40)))
        report = validate_dataset(resolve_dataset(str(path), settings=Settings()))
        assert report.success
        assert all(check.success for check in report.checks)


def test_validate_dataset_refuses_a_file_that_changed(tmp_path: Path) -> None:
    spec = _spec(tmp_path / "x.jsonl", [_GOOD])
    (tmp_path / "x.jsonl").write_text(json.dumps(_GOOD) + "\n" + json.dumps({**_GOOD, "id": "b"}) + "\n")
    with pytest.raises(DatasetError, match="has 2 items and its record says 1"):
        validate_dataset(spec)


def _report(**check: Any) -> ValidationReport:
    return ValidationReport(
        dataset="<script>alert(1)</script>",
        success=False,
        checks=(ValidationCheck(expectation="expect_it", column="c", success=False, **check),),
        items=7,
        library_version="great-expectations 1.24.1",
    )


def test_write_report_escapes_data_and_writes_json_too(tmp_path: Path) -> None:
    report = _report(unexpected_count=2, examples=("line 1: '<img src=x>'",))
    write_report(report, tmp_path / "report.html")
    write_report(report, tmp_path / "report.json")
    page = (tmp_path / "report.html").read_text()
    assert page == report_html(report)
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;img" in page
    assert ValidationReport.model_validate_json((tmp_path / "report.json").read_text()) == report
