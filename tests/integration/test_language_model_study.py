"""A study planned with a language model from plan to results: real MLflow, real sockets, scripted measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agentic_compression import study as domain
from agentic_compression.planning import seed_strategies
from agentic_compression.records import (
    DatasetSpec,
    DatasetTask,
    Evaluation,
    FinalResults,
    ModelSpec,
    SpecSource,
    Strategy,
    StudyConfig,
)
from agentic_compression.settings import get_settings
from agentic_compression.study.episode import offered_space
from agentic_compression.study.loop import run_study
from agentic_compression.testing.language_model import Response, ScriptedModel, answer, decision, scripted_model
from agentic_compression.testing.records import make_evaluation
from agentic_compression.testing.scripted_supervisor import ScriptedSupervisor
from agentic_compression.tracking import MlflowHistory

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "sk-integration-0a1b2c3d4e5f"


def _measured(strategy: Strategy) -> Evaluation | str:
    """Made-up results that differ between strategies, so that some of them join the frontier."""
    digit = int(strategy.key[:4], 16) / 0xFFFF
    if strategy.is_baseline:
        return make_evaluation(accuracy=0.95, size_bytes=20_000_000)
    return make_evaluation(accuracy=round(0.5 + 0.4 * digit, 2), size_bytes=int(2e6 + 1.6e7 * digit))


def _spec(home: Path) -> ModelSpec:
    folder = home / "base"
    folder.mkdir(exist_ok=True)
    source = SpecSource(source="local_checkpoint", parameters=10, exact=True)
    return ModelSpec(
        model="demo", path=str(folder), digest="b" * 16, parameters=10, bytes_per_parameter=2, dtype="bfloat16",
        family="llama", size_class="tiny", sources=(source,),
    )  # fmt: skip


def _dataset() -> DatasetSpec:
    task = DatasetTask(name="t", kind="text", path="/nowhere.jsonl", items=1, digest="t")
    return DatasetSpec(dataset="demo", name="demo", tasks=(task,), digest="t", calibration_path="/calibration.jsonl")


def _run(config: StudyConfig, bench: domain.Workbench, home: Path) -> FinalResults:
    def run_one(study: StudyConfig) -> None:
        spec, dataset = _spec(home), _dataset()
        plan = domain.plan_episode(study, spec, dataset, bench)
        compressed = domain.compress(study, spec, dataset, plan, bench)
        evaluated = domain.evaluate(study, dataset, compressed, bench)
        domain.update_frontier(study, plan, compressed, evaluated, bench)

    return run_study(config, bench, run_one)


@pytest.fixture
def seeds() -> int:
    config = StudyConfig(model="demo", dataset="demo", name="x")
    return len(seed_strategies(offered_space(config, _dataset())))


def _bench(
    home: Path, store: tuple[MlflowClient, Path], server: ScriptedModel, patch: pytest.MonkeyPatch, **values: str
) -> domain.Workbench:
    client, folder = store
    for name, value in {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.url, **values}.items():
        patch.setenv(name, value)
    get_settings.cache_clear()
    return domain.Workbench(get_settings(), MlflowHistory(client, folder), ScriptedSupervisor(_measured))


def _everything(home: Path, client: MlflowClient, name: str) -> str:
    """All files of the study and all that MLflow holds of it, as text."""
    files = "".join(path.read_text(errors="replace") for path in home.rglob("*") if path.is_file())
    experiment: Any = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    traces = client.search_traces(locations=[experiment.experiment_id])
    return files + "".join(str(run.to_dictionary()) for run in runs) + "".join(trace.to_json() for trace in traces)


def test_a_study_records_decisions_expectations_usage_and_traces(
    home: Path, mlflow_store: tuple[MlflowClient, Path], monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    stages = [
        [{"method": "rtn", "parameters": {"bits": 4, "group_size": 32, "symmetric": True}}],
        [{"method": "magnitude", "parameters": {"sparsity": 0.2}}, {"method": "rtn", "parameters": {"bits": 8}}],
    ]

    def script(body: dict[str, Any], number: int) -> Response:
        if number == 1:
            return Response.error(401, f"bad key {KEY}")
        action = "quantization" if number == 0 else "pipeline"
        return answer(decision(action, stages=stages[min(number, 1)]))

    with scripted_model(script) as server:
        bench = _bench(home, mlflow_store, server, monkeypatch)
        config = StudyConfig(
            model="demo", dataset="demo", name="asked", planner="llm", episodes=seeds + 3, screening=False,
            objective=f"small, and never mention {KEY}",
        )  # fmt: skip
        results = _run(config, bench, home)
    assert results.termination_reason in {"max_episodes", "converged"}
    records = {record.episode: record for record in bench.history.records("asked")}
    own, fallback = records[seeds + 1], records[seeds + 2]
    assert own.strategy.stages[0].parameters["group_size"] == 32
    assert own.source == "llm"
    assert own.expected["accuracy"] == (0.8, 0.7, 0.9)
    assert [(call.status, call.prompt, call.answer) for call in own.calls] == [("ok", "", "")]
    assert own.timings["plan"] > 0
    assert fallback.source == "llm:optimizer"
    assert "401" in fallback.fallback
    usage = results.planner_usage
    assert usage.calls == len(server.requests) >= 2
    assert usage.prompt_tokens == 1000 * (usage.calls - 1)
    assert usage.fallbacks == 1
    assert usage.cost_usd is None
    assert "language model" in results.planner_note
    (error,) = [
        item for item in results.expectation_errors if (item.maker, item.objective) == ("language model", "accuracy")
    ]
    decided = [record for record in records.values() if record.calls and not record.fallback]
    signed = [0.8 - record.objectives.accuracy for record in decided if record.objectives]
    assert error.episodes == len(decided)
    assert error.mean_error == pytest.approx(sum(signed) / len(signed))
    sources = {item.source: item.episodes for item in results.planner_sources}
    assert sources["seed"] == seeds
    assert sources["llm"] == len(decided)
    shown = json.loads((home / f"data/experiments/asked/episode_{seeds + 2:03d}/results.json").read_text())
    assert "401" in shown["fallback"]
    client, _ = mlflow_store
    experiment: Any = client.get_experiment_by_name("asked")
    traces: list[Any] = client.search_traces(locations=[experiment.experiment_id])
    assert len(traces) == usage.calls
    assert {trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces} == {
        record.run_id for record in records.values() if record.calls
    }
    everything = _everything(home, client, "asked")
    assert everything.count(KEY) == everything.count(f"never mention {KEY}")  # only the user's own study file
    assert all(KEY not in trace.to_json() for trace in traces)


def test_the_model_may_end_a_study_and_its_last_call_counts(
    home: Path, mlflow_store: tuple[MlflowClient, Path], monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    with scripted_model(lambda body, number: answer(decision("end"))) as server:
        bench = _bench(home, mlflow_store, server, monkeypatch, ACF_PLANNER_MIN_EPISODES="1")
        config = StudyConfig(
            model="demo", dataset="demo", name="ended", planner="llm", episodes=seeds + 5, screening=False
        )
        results = _run(config, bench, home)
        if results.termination_reason == "converged":  # the made-up seeds stopped gaining before it was asked
            pytest.fail("the scripted results must leave the decision to the model")
        assert results.termination_reason == "planner_end"
        assert results.planner_usage.calls == len(server.requests) == 1
        assert "ends the study: scripted" in results.planner_note
        assert results.episodes_run == seeds + 1
        again = _run(config, bench, home)
    assert again.planner_usage.calls == 2


def test_a_hybrid_study_with_a_broken_server_finishes_all_its_episodes(
    home: Path, mlflow_store: tuple[MlflowClient, Path], monkeypatch: pytest.MonkeyPatch, seeds: int
) -> None:
    with scripted_model(lambda body, number: Response(b"\x00garbage", 200)) as server:
        bench = _bench(home, mlflow_store, server, monkeypatch, ACF_PLANNER_OVERRIDE_SHARE="1")
        config = StudyConfig(
            model="demo", dataset="demo", name="broken", planner="hybrid", episodes=seeds + 4, screening=False
        )
        results = _run(config, bench, home)
    records = bench.history.records("broken")
    assert results.termination_reason in {"max_episodes", "converged"}
    planned = [record for record in records if record.source.startswith("hybrid:")]
    assert {record.source for record in planned} == {"hybrid:optimizer"}
    assert results.planner_usage.fallbacks == sum(bool(record.fallback) for record in records)
    assert results.planner_usage.calls == len(server.requests)
    assert all(record.fallback for record in records if record.calls)
    assert all("language model" in record.rationale for record in planned)
    assert len({record.strategy.key for record in records}) == len(records)
    assert "its share is" in results.planner_note
