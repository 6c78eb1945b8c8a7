"""The study's loop, files, retention and removal, with scripted work and a history in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from agentic_compression import execution, orchestration
from agentic_compression import study as domain
from agentic_compression.cli.main import app
from agentic_compression.errors import AcfError, ConfigurationError
from agentic_compression.records import (
    CompressionOutcome,
    DatasetSpec,
    DatasetTask,
    EpisodePlan,
    Evaluation,
    EvaluationOutcome,
    FrontierDocument,
    ModelSpec,
    SpecSource,
    Strategy,
    StudyConfig,
)
from agentic_compression.settings import get_settings
from agentic_compression.study.episode import offered_space
from agentic_compression.study.lease import CheckpointLease
from agentic_compression.study.loop import run_study
from agentic_compression.study.removal import remove_study
from agentic_compression.testing.memory_history import MemoryHistory
from agentic_compression.testing.records import make_evaluation
from agentic_compression.testing.scripted_supervisor import ScriptedSupervisor

Script = Callable[[Strategy], Evaluation | str]


def _by_bits(strategy: Strategy) -> Evaluation | str:
    """The fewer bits, the smaller and the less accurate; the baseline has 16."""
    bits = min((int(stage.parameters.get("bits", 16)) for stage in strategy.stages), default=16)
    return make_evaluation(accuracy={16: 0.95, 8: 0.95, 4: 0.93, 3: 0.8, 2: 0.3}[bits], size_bytes=bits * 1_000_000)


@pytest.fixture
def config() -> StudyConfig:
    return StudyConfig(model="demo", dataset="demo", name="scripted", episodes=4)


def _bench(script: Script = _by_bits) -> domain.Workbench:
    return domain.Workbench(get_settings(), MemoryHistory(), ScriptedSupervisor(script))


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


def _one_episode(bench: domain.Workbench, home: Path) -> Callable[[StudyConfig], None]:
    def run_one(config: StudyConfig) -> None:
        spec, dataset = _spec(home), _dataset()
        plan = domain.plan_episode(config, spec, dataset, bench)
        compressed = domain.compress(config, spec, dataset, plan, bench)
        evaluated = domain.evaluate(config, dataset, compressed, bench)
        domain.update_frontier(config, plan, compressed, evaluated, bench)

    return run_one


def _carried_out(
    config: StudyConfig, home: Path, dataset: DatasetSpec, bench: domain.Workbench
) -> tuple[EpisodePlan, CompressionOutcome, EvaluationOutcome]:
    plan = domain.plan_episode(config, _spec(home), dataset, bench)
    compressed = domain.compress(config, _spec(home), dataset, plan, bench)
    return plan, compressed, domain.evaluate(config, dataset, compressed, bench)


def _document(home: Path) -> FrontierDocument:
    path = home / "data" / "experiments" / "scripted" / "pareto_frontier.json"
    return FrontierDocument.model_validate_json(path.read_text())


def test_a_study_runs_to_its_last_episode_and_writes_what_the_history_says(home: Path, config: StudyConfig) -> None:
    bench = _bench()
    results = run_study(config, bench, _one_episode(bench, home))
    assert results.termination_reason == "max_episodes"
    assert results.episodes_run == 5
    assert results.episodes_by_status == {"succeeded": 5}
    assert results.wall_seconds == pytest.approx(5 * 3.0)
    assert results.energy_kwh == pytest.approx(5 * 3.0 * get_settings().cpu_watts_per_core / 3.6e6)
    assert isinstance(bench.history, MemoryHistory)
    assert bench.history.members["scripted"] == {solution.episode for solution in _document(home).solutions}
    for number in range(5):
        folder = home / "data" / "experiments" / "scripted" / f"episode_{number:03d}"
        shown = json.loads((folder / "results.json").read_text())
        assert shown["is_pareto_optimal"] == (number in bench.history.members["scripted"])
        assert shown["sample_count"] == 100


def test_further_episodes_are_run_after_convergence(home: Path, config: StudyConfig) -> None:
    """Nothing is better than the first strategies, so the study converges; asked for two more, it does two more."""
    bench = _bench(lambda strategy: make_evaluation() if strategy.is_baseline else make_evaluation(accuracy=0.5))
    run_one, many = _one_episode(bench, home), config.model_copy(update={"episodes": 50})
    converged = run_study(many, bench, run_one)
    assert converged.termination_reason == "converged"
    done = converged.episodes_run
    assert run_study(many, bench, run_one).episodes_run == done
    further = config.model_copy(update={"episodes": done - 1 + 2})
    results = run_study(further, bench, run_one, when_converged=False)
    assert (results.termination_reason, results.episodes_run) == ("max_episodes", done + 2)
    broke = further.model_copy(update={"episodes": 99, "budget_hours": 1e-6})
    assert run_study(broke, bench, run_one, when_converged=False).termination_reason == "time_budget"
    assert len(bench.history.records(config.name)) == done + 2


def test_the_command_does_further_episodes_of_a_converged_study(
    home: Path, config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _bench(lambda strategy: make_evaluation() if strategy.is_baseline else make_evaluation(accuracy=0.5))
    run_one = _one_episode(bench, home)
    run_study(config.model_copy(update={"episodes": 50}), bench, run_one)
    monkeypatch.setattr(orchestration, "prepare_environment", lambda settings: None)
    monkeypatch.setattr(orchestration, "ensure_stack", lambda settings: None)
    monkeypatch.setattr(orchestration, "run_episode", run_one)
    monkeypatch.setattr(domain, "open_workbench", lambda: bench)
    monkeypatch.setattr(execution, "shared_supervisor", lambda: SimpleNamespace(start=lambda: None))
    before = len(bench.history.records("scripted"))

    def acf_run(*options: str) -> dict[str, Any]:
        arguments = ["run", "-m", "demo", "-d", "demo", "--name", "scripted", "--json", *options]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    told = acf_run("--episodes", "50")
    assert (told["termination_reason"], told["episodes_added"], told["alias_moves"]) == ("converged", 0, [])
    told = acf_run("--episodes", "+2")
    assert (told["termination_reason"], told["episodes_added"]) == ("max_episodes", 2)
    assert len(bench.history.records("scripted")) == before + 2


def test_only_checkpoints_of_the_frontier_stay_on_disk(home: Path, config: StudyConfig) -> None:
    bench = _bench()
    run_study(config, bench, _one_episode(bench, home))
    kept = {Path(item.checkpoint).name for item in _document(home).solutions if item.checkpoint and item.episode}
    assert {path.name for path in (home / "data" / "artifacts" / "checkpoints").glob("[!.]*")} == kept
    assert (home / "base").is_dir()  # the user's own folder


@pytest.mark.parametrize("status", ["oom", "failed", "timed_out", "infeasible"])
def test_a_strategy_that_fails_is_recorded_and_the_study_goes_on(home: Path, config: StudyConfig, status: str) -> None:
    bench = _bench(lambda strategy: _by_bits(strategy) if strategy.is_baseline else status)
    results = run_study(config, bench, _one_episode(bench, home))
    assert results.episodes_by_status == {status: 4, "succeeded": 1}
    assert [solution.episode for solution in results.solutions] == [0]


def test_an_abandoned_episode_is_carried_out_again_as_it_was_planned(home: Path, config: StudyConfig) -> None:
    bench = _bench()
    run_one = _one_episode(bench, home)
    bench.history.open_study(config)
    run_one(config)
    interrupted = domain.plan_episode(config, _spec(home), _dataset(), bench)
    assert isinstance(bench.history, MemoryHistory)
    bench.history.abandon(config.name)
    run_study(config, bench, run_one)
    records = bench.history.records(config.name)
    assert [record.episode for record in records] == [0, 1, 2, 3, 4]
    assert records[1].strategy == interrupted.strategy


def test_ctrl_c_ends_the_loop_and_keeps_what_was_finished(home: Path, config: StudyConfig) -> None:
    bench = _bench()
    run_one, count = _one_episode(bench, home), 0

    def interrupted(study: StudyConfig) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        run_one(study)

    results = run_study(config, bench, interrupted)
    assert results.termination_reason == "interrupted"
    assert results.episodes_run == 2


def test_a_run_that_records_nothing_is_an_error_and_not_an_endless_loop(home: Path, config: StudyConfig) -> None:
    bench = _bench()
    _one_episode(bench, home)(config)
    with pytest.raises(AcfError, match="recorded no episode"):
        run_study(config, bench, lambda study: None)


def test_a_full_quota_stops_before_an_episode_and_records_nothing(home: Path, config: StudyConfig) -> None:
    bench = _bench()
    tight = config.model_copy(update={"disk_quota_gb": 1e-9})
    with pytest.raises(AcfError, match="disk_quota_gb"):
        run_study(tight, bench, _one_episode(bench, home))
    assert all(record.status == "succeeded" for record in bench.history.records("scripted"))
    assert run_study(config, bench, _one_episode(bench, home)).episodes_run == 5


def test_nothing_is_deleted_while_another_process_works(home: Path, config: StudyConfig) -> None:
    other = CheckpointLease(get_settings().checkpoints)
    other.hold()
    bench = _bench(lambda strategy: make_evaluation() if strategy.is_baseline else make_evaluation(accuracy=0.5))
    run_study(config, bench, _one_episode(bench, home))
    stored = home / "data" / "artifacts" / "checkpoints"
    assert len(list(stored.glob("[!.]*"))) == 4
    other.release()
    more = config.model_copy(update={"episodes": 5})
    run_study(more, bench, _one_episode(bench, home))
    kept = {Path(item.checkpoint).name for item in _document(home).solutions if item.checkpoint and item.episode}
    assert {path.name for path in stored.glob("[!.]*")} == kept


@pytest.mark.parametrize("name", [".", "", "..", "a/b", "/etc", ".hidden"])
def test_a_study_is_never_removed_by_a_path(home: Path, config: StudyConfig, name: str) -> None:
    bench = _bench()
    run_study(config, bench, _one_episode(bench, home))
    with pytest.raises(ConfigurationError, match="study's name"):
        remove_study(name, bench)
    assert _document(home).study == "scripted"


def test_two_studies_share_a_checkpoint_until_neither_needs_it(home: Path, config: StudyConfig) -> None:
    first = _bench()
    run_study(config, first, _one_episode(first, home))
    second = _bench()
    other = config.model_copy(update={"name": "other"})
    run_study(other, second, _one_episode(second, home))
    shared = {path.name for path in (home / "data" / "artifacts" / "checkpoints").glob("[!.]*")}
    kept = remove_study("scripted", first).kept
    assert len(kept) == 1
    assert kept[0].startswith(f"{len(shared)} checkpoint")
    assert {path.name for path in (home / "data" / "artifacts" / "checkpoints").glob("[!.]*")} == shared
    removed = remove_study("other", second)
    assert removed.checkpoints == len(shared)
    assert removed.kept == ()
    assert not list((home / "data" / "artifacts" / "checkpoints").glob("[!.]*"))
    run_study(config, first, _one_episode(first, home))
    with pytest.raises(ConfigurationError, match=r"no study 'other' in .*; studies here: scripted$"):
        remove_study("other", second)


def test_methods_that_need_calibration_are_not_offered_without_it(home: Path, config: StudyConfig) -> None:
    without = _dataset().model_copy(update={"calibration_path": None, "calibration_source": "too few items"})
    bench = _bench()
    bench.history.open_study(config)
    domain.update_frontier(config, *_carried_out(config, home, without, bench), bench)
    plan = domain.plan_episode(config, _spec(home), without, bench)
    assert plan.strategy is not None
    assert [stage.method for stage in plan.strategy.stages] == ["rtn"]
    space = offered_space(config, without)
    gptq = space.method("gptq")
    assert gptq is not None
    assert "too few items" in (gptq.unavailable_reason or "")


@pytest.mark.parametrize(("bits", "healed"), [(3, True), (8, False)])
def test_a_condition_is_measured_in_the_episode(home: Path, config: StudyConfig, bits: int, healed: bool) -> None:
    bench, spec = _bench(), _spec(home)
    (home / "base" / "config.json").write_text("{}")
    (home / "base" / "model.safetensors").write_bytes(b"weights")
    strategy = Strategy.parse(f"rtn:bits={bits} | distill if accuracy_drop>0.02")
    plan = EpisodePlan(study="scripted", episode=1, strategy=strategy, planner="user", source="user", seed=0)
    compressed = domain.compress(config, spec, _dataset(), plan, bench)
    assert compressed.status == "succeeded"
    assert [stage.stage for stage in compressed.stages] == [f"rtn:bits={bits}" + (" | distill" if healed else "")]
    assert len(compressed.decisions) == 1
    assert ("carried out" in compressed.decisions[0]) is healed
    assert isinstance(bench.supervisor, ScriptedSupervisor)
    assert bench.supervisor.calls == ["compress", "measure_quality", "measure_quality", "compress"]
    assert compressed.seconds == pytest.approx(1.0 + 0.5 + 0.5 + 1.0)


def test_a_strategy_beyond_memory_or_time_is_refused_before_any_work(home: Path, config: StudyConfig) -> None:
    bench, spec = _bench(), _spec(home)
    huge = spec.model_copy(update={"parameters": 10**15})
    plan = EpisodePlan(
        study="scripted", episode=1, strategy=Strategy.parse("rtn"), planner="user", source="user", seed=0
    )
    outcome = domain.compress(config, huge, _dataset(), plan, bench)
    assert outcome.status == "infeasible"
    assert "GB are free" in (outcome.error or "")
    assert outcome.estimated_peak_bytes is not None
    assert outcome.estimated_peak_bytes > 10**15
    hurried = config.model_copy(update={"episode_timeout_s": 1.0})
    slow = plan.model_copy(update={"strategy": Strategy.parse("rtn | distill:steps=3000")})
    bigger = spec.model_copy(update={"parameters": 10**8})
    outcome = domain.compress(hurried, bigger, _dataset(), slow, bench)
    assert outcome.status == "infeasible"
    assert "episode_timeout_s" in (outcome.error or "")
    assert isinstance(bench.supervisor, ScriptedSupervisor)
    assert bench.supervisor.calls == []


def test_an_orphan_whose_method_is_gone_is_recorded_as_failed(home: Path, config: StudyConfig) -> None:
    bench = _bench()
    plan = EpisodePlan(
        study="scripted", episode=1, strategy=Strategy.parse("vanished"), planner="user", source="user", seed=0
    )
    outcome = domain.compress(config, _spec(home), _dataset(), plan, bench)
    assert outcome.status == "failed"
    assert "vanished" in (outcome.error or "")


def test_names_come_from_model_dataset_and_seed() -> None:
    assert (
        domain.study_name(StudyConfig(model="org/Model-7B", dataset="/data/my questions.jsonl"))
        == "Model-7B-my-questions"
    )
    assert domain.study_name(StudyConfig(model="demo", dataset="gsm8k,arc", seed=3)) == "demo-gsm8k-arc-seed3"
    assert (
        domain.study_name(StudyConfig(model="models:/demo--demo@champion", dataset="demo"))
        == "demo--demo-champion-demo"
    )
