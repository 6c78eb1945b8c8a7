"""``acf compare``: what its arguments mean, and what is refused before anything is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from agentic_compression.cli.compare import _configuration, _episode, _of_one_study, _only, _stored, compare
from agentic_compression.errors import ConfigurationError
from agentic_compression.records import DatasetSpec, DatasetTask, EvaluationSettings, Report, StudyConfig
from agentic_compression.settings import get_settings
from agentic_compression.storage import write_record
from agentic_compression.study.workbench import study_folder
from agentic_compression.testing.memory_history import MemoryHistory
from agentic_compression.testing.records import make_estimate, make_evaluation, make_plan, make_record

if TYPE_CHECKING:
    from agentic_compression.study import Workbench


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


def study_of(**values: Any) -> StudyConfig:
    config = StudyConfig(model="demo", dataset="demo", name="s", seed=7, **values)
    write_record(study_folder(get_settings(), "s") / "study.json", config)
    return config


@pytest.fixture
def no_bench(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh state root, and neither a database nor child processes."""
    monkeypatch.setattr("agentic_compression.study.open_workbench", lambda: None)
    monkeypatch.setattr("agentic_compression.execution.shared_supervisor", lambda: SimpleNamespace(start=lambda: None))
    return home


def test_an_episodes_items_are_its_studys_whatever_the_seed(no_bench: Path) -> None:
    config = study_of(evaluation=EvaluationSettings(limit=40, seed=3))
    for names in (("s:0", "s:1"), ("demo", "s:1")):
        assert _configuration(names, None, 5, None, None)[0] == config
    fewer, _ = _configuration(("s:0", "s:1"), None, None, 9, no_bench)
    assert (fewer.seed, fewer.evaluation.limit, fewer.evaluation.seed) == (7, 9, 3)
    assert fewer.benchmark_dir == str(no_bench)
    other, _ = _configuration(("s:0", "s:1"), "gsm8k", 5, None, None)
    assert (other.dataset, other.seed) == ("gsm8k", 7)
    assert _configuration(("demo", "demo"), None, 5, None, None)[0].seed == 5
    assert _configuration(("demo", "demo"), None, None, None, None)[0].seed == 0
    with pytest.raises(ConfigurationError, match=r"no study 't'.*; studies here: s$"):
        _configuration(("t:0", "demo"), None, None, None, None)


def test_two_episodes_are_compared_on_the_report_items_where_both_were_asked_them(tmp_path: Path) -> None:
    history = MemoryHistory()
    searched = make_evaluation(0.9).model_copy(update={"split": "search"})
    asked = tuple(make_evaluation(0.7).benchmarks)
    report = Report(accuracy=make_estimate(0.7), benchmarks=asked)
    for episode, kept in ((0, report), (1, report), (2, None)):
        record = make_record(make_plan("s", episode), tmp_path / str(episode), searched, report=kept)
        history.record(record)
    bench = cast("Workbench", SimpleNamespace(history=history))
    for found in _stored(("s:0", "s:1"), bench):
        assert found is not None
        assert (found.split, found.accuracy.value, found.benchmarks) == ("report", 0.7, asked)
    assert _stored(("s:0", "s:2"), bench) == (searched, searched)
    assert _stored(("s:0", "s:3"), bench) == (searched, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "0"], "--limit"),
        (["--limit", "-3"], "--limit"),
        (["--seed", "-1"], "--seed"),
        (["-o", "folder.md"], "must be a file"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_read(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "folder.md").mkdir()
    command = [sys.executable, "-m", "agentic_compression.cli.main", "compare", "s:0", "s:1", *arguments]
    environment = {**os.environ, "ACF_HOME": str(tmp_path / "state")}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "state").exists()


def test_the_reports_ending_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"\.md, \.html or \.json"):
        compare("demo", "demo", output=tmp_path / "report.pdf")
