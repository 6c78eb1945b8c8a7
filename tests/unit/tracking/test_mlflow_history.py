"""The history in a real MLflow store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import EpisodePlan, Report, RungReading, StudyConfig
from agentic_compression.testing.records import make_evaluation, make_plan, make_record
from agentic_compression.tracking import MlflowHistory
from agentic_compression.tracking.ownership import owner_is_alive, owner_of_this_process

if TYPE_CHECKING:
    from mlflow import MlflowClient

Store = tuple["MlflowClient", Path]


@pytest.fixture
def study(mlflow_store: Store) -> tuple[MlflowHistory, str]:
    client, folder = mlflow_store
    history = MlflowHistory(client, folder / "artifacts")
    name = f"study-{uuid4().hex[:8]}"
    history.open_study(StudyConfig(model="demo", dataset="demo", name=name))
    return history, name


def _record(history: MlflowHistory, plan: EpisodePlan, folder: Path, **changes: object) -> None:
    history.record(make_record(plan, folder / plan.study / str(plan.episode), **changes))


def test_a_claim_is_no_record_until_it_is_recorded(study: tuple[MlflowHistory, str], tmp_path: Path) -> None:
    history, name = study
    assert history.next_episode(name) == 0
    plan = history.claim(make_plan(name, 0))
    assert history.records(name) == []
    assert history.next_episode(name) == 1
    _record(history, plan, tmp_path)
    (record,) = history.records(name)
    assert record.episode == 0
    assert record.objectives == make_evaluation().objectives
    assert record.evaluation == make_evaluation()


def test_records_come_by_number_and_read_back_whole(study: tuple[MlflowHistory, str], tmp_path: Path) -> None:
    history, name = study
    plans = [history.claim(make_plan(name, number, f"rtn:bits={bits}")) for number, bits in enumerate((8, 4, 3))]
    for plan in reversed(plans):
        _record(history, plan, tmp_path, rationale=f"ü<{plan.episode}>")
    records = history.records(name)
    assert [record.episode for record in records] == [0, 1, 2]
    assert records[2].strategy.label == "rtn:bits=3"
    assert records[2].rationale == "ü<2>"
    assert records[2].evaluation is None
    assert history.evaluation(name, 2) == make_evaluation()


def test_failed_episodes_are_kept_with_their_reason(study: tuple[MlflowHistory, str], tmp_path: Path) -> None:
    history, name = study
    plan = history.claim(make_plan(name, 0, "gptq:bits=4"))
    error = "stage gptq: " + "x" * 20_000
    changes: dict[str, object] = {
        "status": "oom",
        "error": error,
        "objectives": None,
        "checkpoint": None,
        "evaluation": None,
    }
    _record(history, plan, tmp_path, **changes)
    (record,) = history.records(name)
    assert (record.status, record.objectives) == ("oom", None)
    assert record.error == error[:1500]


def test_readings_and_report_fit_and_come_back(study: tuple[MlflowHistory, str], tmp_path: Path) -> None:
    history, name = study
    reading = RungReading(
        rung=3,
        quantity="accuracy",
        value=0.123456789,
        low=0.1,
        high=0.2,
        n=60,
        seconds=1.5,
        passed=True,
        reason="x" * 900,
    )
    score = make_evaluation().benchmarks[0].model_copy(update={"items": tuple(f"item {n}" for n in range(5000))})
    report = Report(accuracy=make_evaluation().accuracy, benchmarks=(score,), warnings=("few items",))
    readings = (reading.model_copy(update={"rung": 1, "quantity": "kl"}), *[reading] * 20)
    plan = history.claim(make_plan(name, 0))
    _record(history, plan, tmp_path, screening=readings, report=report, rationale="y" * 5000)
    (record,) = history.records(name)
    assert [found.quantity for found in record.screening] == ["kl", "accuracy"]
    assert record.report is not None
    assert record.report.accuracy == report.accuracy
    assert record.report.warnings == ("few items",)
    assert history.report(name, 0) == report
    assert history.report(name, 7) is None


def test_adopt_takes_only_claims_of_dead_processes(study: tuple[MlflowHistory, str]) -> None:
    history, name = study
    claimed = history.claim(make_plan(name, 0, "rtn:bits=4"))
    assert history.adopt(name) is None
    dead = subprocess.run(
        [sys.executable, "-c", "from agentic_compression.tracking.ownership import *; print(owner_of_this_process())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert not owner_is_alive(dead)
    assert claimed.run_id is not None
    history.client.set_tag(claimed.run_id, "acf.owner", dead)
    assert history.adopt(name) == claimed
    assert history.adopt(name) is None  # it is this process's again


def test_ownership_of_this_process_is_alive() -> None:
    assert owner_is_alive(owner_of_this_process())
    host, boot, pid, _ = owner_of_this_process().split("/")
    assert not owner_is_alive(f"{host}/{boot}/{pid}/0")  # the same number, another process
    assert not owner_is_alive("")
    assert owner_is_alive(f"elsewhere/{boot}/{pid}/0", claimed_seconds_ago=3600)
    assert not owner_is_alive(f"elsewhere/{boot}/{pid}/0", claimed_seconds_ago=25 * 3600)


def test_open_study_refuses_another_question_under_the_same_name(study: tuple[MlflowHistory, str]) -> None:
    history, name = study
    history.open_study(StudyConfig(model="demo", dataset="demo", name=name, episodes=50, planner="random"))
    with pytest.raises(ConfigurationError, match="choose another --name"):
        history.open_study(StudyConfig(model="demo", dataset="demo", name=name, seed=1))


def test_a_record_full_of_escapes_still_reads_back(study: tuple[MlflowHistory, str], tmp_path: Path) -> None:
    history, name = study
    plan = history.claim(make_plan(name, 0).model_copy(update={"rationale": "\x1b" * 4000}))
    _record(history, plan, tmp_path, error="\x1b" * 4000, rationale='"' * 4000)
    (record,) = history.records(name)
    assert record.error is not None
    assert set(record.error) == {"\x1b"}
    assert set(record.rationale) == {'"'}


def test_a_study_deleted_in_the_mlflow_ui_can_be_begun_again(study: tuple[MlflowHistory, str]) -> None:
    history, name = study
    history.client.delete_experiment(history._experiment(name))
    history.open_study(StudyConfig(model="demo", dataset="demo", name=name))
    assert history.claim(make_plan(name, 0)).run_id


def test_open_study_refuses_a_model_whose_files_changed(study: tuple[MlflowHistory, str]) -> None:
    history, name = study
    config = StudyConfig(model="demo", dataset="demo", name=name)
    history.open_study(config, "aaaa")
    history.open_study(config, "aaaa")
    with pytest.raises(ConfigurationError, match="have changed"):
        history.open_study(config, "bbbb")


def test_forget_frees_the_name(study: tuple[MlflowHistory, str], tmp_path: Path) -> None:
    history, name = study
    _record(history, history.claim(make_plan(name, 0)), tmp_path)
    history.forget(name)
    assert not history.exists(name)
    history.open_study(StudyConfig(model="other", dataset="demo", name=name))
    assert history.records(name) == []


def test_compare_view_finds_parameters_metrics_and_membership(study: tuple[MlflowHistory, str], tmp_path: Path) -> None:
    history, name = study
    plan = history.claim(make_plan(name, 0, "magnitude:sparsity=0.3 | gptq:bits=4,group_size=64"))
    _record(history, plan, tmp_path)
    history.mark_frontier(name, frozenset({0}))
    assert plan.run_id is not None
    run = history.client.get_run(plan.run_id)
    assert run.data.params["methods"] == "magnitude+gptq"
    assert run.data.params["bits"] == "4"
    assert run.data.params["sparsity"] == "0.3"
    assert run.data.metrics["accuracy"] == pytest.approx(0.9)
    assert run.data.metrics["accuracy.low"] == pytest.approx(0.87)
    assert run.data.tags["acf.pareto"] == "true"
    assert run.info.status == "FINISHED"


def test_files_of_the_whole_study_lie_with_its_baseline(study: tuple[MlflowHistory, str], tmp_path: Path) -> None:
    history, name = study
    history.attach(name, {"results_validation.html": "too early"})
    plan = history.claim(make_plan(name, 0))
    _record(history, plan, tmp_path)
    for text in ("<p>one</p>", "<p>two</p>"):
        history.attach(name, {"results_validation.html": text})
    assert plan.run_id is not None
    found = history.client.download_artifacts(plan.run_id, "results_validation.html", str(tmp_path))
    assert Path(found).read_text() == "<p>two</p>"
