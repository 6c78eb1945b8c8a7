"""``acf compare``: what its arguments mean, and what is refused before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.cli.compare import _episode, _of_one_study, _only, compare
from agentic_compression.errors import ConfigurationError
from agentic_compression.records import DatasetSpec, DatasetTask


def test_an_episode_is_told_from_models_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = _episode("demo-demo:3")
    assert match is not None
    assert (match["study"], match["episode"]) == ("demo-demo", "3")
    for other in ("models:/demo@best", "demo", "org/name", "../x:3", "a:b"):
        assert _episode(other) is None
    monkeypatch.chdir(tmp_path)
    Path("study:3").mkdir()
    assert _episode("study:3") is None


def test_stored_evaluations_are_taken_within_one_study_only() -> None:
    assert _of_one_study("s:0", "s:4")
    assert not _of_one_study("s:0", "t:4")
    assert not _of_one_study("s", "s")


def test_tasks_are_chosen_by_name() -> None:
    tasks = tuple(DatasetTask(name=name, kind="generation", path="/x", items=1, digest=name) for name in ("one", "two"))
    data = DatasetSpec(dataset="d", name="d", tasks=tasks, digest="d")
    assert [task.name for task in _only(data, "two").tasks] == ["two"]
    assert _only(data, None) is data
    for wrong in ("three", " , "):
        with pytest.raises(ConfigurationError, match="one, two"):
            _only(data, wrong)


def test_the_reports_ending_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\.md, \.html or \.json"):
        compare("demo", "demo", output=tmp_path / "report.pdf")
