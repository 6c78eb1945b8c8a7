"""Calls of the planner as traces in a real MLflow store."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentic_compression.records import PlannerCall, StudyConfig
from agentic_compression.tracking import MlflowHistory
from agentic_compression.tracking.traces import without_texts, write_traces

if TYPE_CHECKING:
    from mlflow import MlflowClient

CALL = PlannerCall(
    model="m", prompt_version="7", prompt='[{"role": "user", "content": "héllo"}]', answer='{"action": "search"}',
    prompt_tokens=100, completion_tokens=20, cost_usd=0.25, seconds=1.5, started_at="2026-02-03T04:05:06+00:00",
)  # fmt: skip
FAILED = CALL.model_copy(update={"status": "failed", "error": "HTTP status 500", "answer": "", "cost_usd": None})


def _open(store: tuple[MlflowClient, Path], name: str) -> tuple[MlflowClient, str]:
    client, folder = store
    MlflowHistory(client, folder).open_study(StudyConfig(model="demo", dataset="demo", name=name))
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return client, experiment.experiment_id


def test_a_trace_holds_prompt_answer_and_what_it_took(mlflow_store: tuple[MlflowClient, Path]) -> None:
    client, experiment = _open(mlflow_store, "traced")
    run = client.create_run(experiment).info.run_id
    assert write_traces(client, "traced", (CALL, FAILED), 4, run) == 2
    traces: list[Any] = client.search_traces(locations=[experiment])
    by_status = {trace.info.tags["acf.status"]: trace for trace in traces}
    good, bad = by_status["ok"], by_status["failed"]
    assert good.info.state == "OK"
    assert bad.info.state == "ERROR"
    assert good.info.execution_duration == 1500
    assert good.info.timestamp_ms == 1770091506000
    assert good.info.trace_metadata["mlflow.sourceRun"] == run
    tags = good.info.tags
    assert (tags["acf.prompt_version"], tags["acf.prompt_tokens"], tags["acf.cost_usd"]) == ("7", "100", "0.250000")
    assert (bad.info.tags["acf.cost_usd"], bad.info.tags["acf.error"]) == ("unknown", "HTTP status 500")
    (span,) = good.data.spans
    assert span.inputs == {"messages": json.loads(CALL.prompt)}
    assert span.outputs["answer"] == CALL.answer
    assert span.end_time_ns - span.start_time_ns == 1_500_000_000
    assert {trace.info.tags["acf.episode"] for trace in traces} == {"4"}


def test_traces_go_to_the_clients_store_whatever_is_set_globally(
    mlflow_store: tuple[MlflowClient, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client, experiment = _open(mlflow_store, "traced elsewhere".replace(" ", "-"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    assert write_traces(client, "traced-elsewhere", (CALL,), 1) == 1
    assert len(client.search_traces(locations=[experiment])) == 1
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize("broken", ["no experiment", "damaged prompt", "no time", "store"])
def test_a_trace_that_cannot_be_written_is_logged_and_passed_over(
    mlflow_store: tuple[MlflowClient, Path],
    broken: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, _ = _open(mlflow_store, "half-traced")
    calls, study = (CALL, CALL), "half-traced"
    if broken == "no experiment":
        study = "never-begun"
    elif broken == "damaged prompt":
        calls = (CALL.model_copy(update={"prompt": "{"}), CALL)
    elif broken == "no time":
        calls = (CALL.model_copy(update={"started_at": ""}), CALL)
    else:
        monkeypatch.setattr("mlflow.tracing.client.TracingClient.__init__", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING):
        written = write_traces(client, study, calls, 1)
    assert written == (1 if broken in {"damaged prompt", "no time"} else 0)
    assert "could not be traced" in caplog.text


def test_plans_keep_calls_without_their_texts() -> None:
    (kept,) = without_texts((CALL,))
    assert (kept.prompt, kept.answer) == ("", "")
    assert kept.model_copy(update={"prompt": CALL.prompt, "answer": CALL.answer}) == CALL
