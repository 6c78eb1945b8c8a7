"""What a planner is told of a study, and what a study leaves behind for the next ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agentic_compression import study as domain
from agentic_compression.memory import (
    Workspace,
    add_experiences,
    list_quarantined,
    read_checkpoints,
    read_experiences,
    recommend,
)
from agentic_compression.records import (
    Constraint,
    DatasetSpec,
    DatasetTask,
    Evaluation,
    Experience,
    ModelSpec,
    SpecSource,
    Strategy,
    StudyConfig,
)
from agentic_compression.settings import get_settings
from agentic_compression.storage import write_record
from agentic_compression.study.loop import run_study
from agentic_compression.study.situation import MOST_RECALLED, situation_of
from agentic_compression.testing.memory_history import MemoryHistory
from agentic_compression.testing.records import make_evaluation
from agentic_compression.testing.scripted_supervisor import ScriptedSupervisor


def _by_bits(strategy: Strategy) -> Evaluation | str:
    bits = min((int(stage.parameters.get("bits", 16)) for stage in strategy.stages), default=16)
    return make_evaluation(accuracy={16: 0.95, 8: 0.95, 4: 0.93, 3: 0.8, 2: 0.3}[bits], size_bytes=bits * 1_000_000)


def _bench() -> domain.Workbench:
    return domain.Workbench(get_settings(), MemoryHistory(), ScriptedSupervisor(_by_bits))


def _dataset() -> DatasetSpec:
    task = DatasetTask(name="demo_mc", kind="text", path="/nowhere.jsonl", items=1, digest="t")
    return DatasetSpec(dataset="demo", name="demo", tasks=(task,), digest="t", calibration_path="/calibration.jsonl")


@pytest.fixture
def spec(home: Path) -> ModelSpec:
    (home / "base").mkdir()
    return ModelSpec(
        model="demo",
        path=str(home / "base"),
        digest="b" * 16,
        parameters=10**7,
        bytes_per_parameter=2,
        dtype="bfloat16",
        family="llama",
        size_class="tiny",
        sources=(SpecSource(source="local_checkpoint", parameters=10**7, exact=True),),
    )


@pytest.fixture
def config() -> StudyConfig:
    return StudyConfig(model="demo", dataset="demo", name="scripted", episodes=3, planner="random")


def _one_episode(bench: domain.Workbench, spec: ModelSpec) -> Callable[[StudyConfig], None]:
    """As the pipeline does it, the specification's file included."""

    def run_one(config: StudyConfig) -> None:
        write_record(bench.folder(config.name) / "model_spec.json", spec)
        plan = domain.plan_episode(config, spec, _dataset(), bench)
        compressed = domain.compress(config, spec, _dataset(), plan, bench)
        evaluated = domain.evaluate(config, _dataset(), compressed, bench)
        domain.update_frontier(config, plan, compressed, evaluated, bench)

    return run_one


def _remembered() -> list[Experience]:
    found = read_experiences(Workspace(get_settings().workspace)).values()
    return sorted(found, key=lambda item: (item.study, item.episode))


def test_a_study_is_remembered_in_proportion_to_its_baseline(spec: ModelSpec, config: StudyConfig) -> None:
    bench = _bench()
    run_study(config, bench, _one_episode(bench, spec))
    records = {record.episode: record for record in bench.history.records("scripted")}
    found = _remembered()
    assert [item.episode for item in found] == [1, 2, 3]
    for item in found:
        record = records[item.episode]
        assert record.objectives is not None
        assert item.strategy == record.strategy
        assert item.accuracy == record.objectives.accuracy
        assert item.ratios["model_size_gb"] == pytest.approx(record.objectives.model_size_gb / 0.016)
        assert (item.tasks, item.dataset, item.family, item.parameters) == (("demo_mc",), "demo", "llama", 10**7)
    knowledge = get_settings().workspace / "knowledge"
    assert (knowledge / "sizes" / "tiny.md").is_file()
    kept = {item.episode for item in read_checkpoints(Workspace(get_settings().workspace))}
    shown = json.loads((bench.folder("scripted") / "pareto_frontier.json").read_text())
    assert kept == {solution["episode"] for solution in shown["solutions"]} - {0}
    assert not list_quarantined(Workspace(get_settings().workspace))


def test_an_episode_of_its_own_is_remembered_and_going_on_adds_only_the_new(
    spec: ModelSpec, config: StudyConfig
) -> None:
    bench = _bench()
    run_one = _one_episode(bench, spec)
    run_one(config)
    assert _remembered() == []  # the baseline is in every ratio, and no experience itself
    run_one(config)
    first = _remembered()
    assert len(first) == 1
    run_study(config, bench, run_one)
    assert _remembered()[:1] == first
    assert len(_remembered()) == 3
    run_study(config, bench, run_one)
    assert len(_remembered()) == 3


def test_a_memory_that_cannot_be_written_does_not_fail_the_study(
    home: Path, spec: ModelSpec, config: StudyConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "workspace").write_text("in the way")
    bench = _bench()
    results = run_study(config, bench, _one_episode(bench, spec))
    assert results.episodes_run == 4
    assert "is not remembered" in caplog.text


def test_the_situation_has_what_is_left(home: Path, spec: ModelSpec, config: StudyConfig) -> None:
    bench = _bench()
    wished = config.model_copy(
        update={
            "objective": "small",
            "constraints": (Constraint.parse("accuracy_drop<=0.02"),),
            "budget_hours": 1.0,
            "carbon_budget_kg": 0.5,
        }
    )
    before = situation_of(wished, spec, _dataset(), bench)
    assert (before.episodes_left, before.seconds_left, before.co2_left_grams) == (3, 3600, 500)
    assert before.recalled == ()
    assert not (home / "workspace").exists()
    run_one = _one_episode(bench, spec)
    for _ in range(3):
        run_one(wished)
    situation = situation_of(wished, spec, _dataset(), bench)
    records = bench.history.records("scripted")
    spent = sum(record.co2_grams_spent for record in records)
    assert spent > 0
    assert situation.co2_spent_grams == pytest.approx(spent)
    assert situation.co2_left_grams == pytest.approx(500 - spent)
    assert situation.seconds_left == pytest.approx(3600 - sum(record.timings["total"] for record in records))
    assert situation.episodes_left == 1
    assert (situation.objective, situation.constraints) == ("small", wished.constraints)
    assert (situation.dataset, situation.tasks, situation.device, situation.spec) == ("demo", ("demo_mc",), "cpu", spec)


def test_a_spent_budget_is_0_and_none_is_none(spec: ModelSpec, config: StudyConfig) -> None:
    bench = _bench()
    run_one = _one_episode(bench, spec)
    for _ in range(3):
        run_one(config)
    tight = config.model_copy(update={"budget_hours": 1e-6, "carbon_budget_kg": 1e-12, "episodes": 1})
    situation = situation_of(tight, spec, _dataset(), bench)
    assert (situation.seconds_left, situation.co2_left_grams, situation.episodes_left) == (0, 0, 0)
    free = situation_of(config, spec, _dataset(), bench)
    assert (free.seconds_left, free.co2_left_grams) == (None, None)


def test_other_studies_are_recalled_and_the_own_is_not(spec: ModelSpec, config: StudyConfig) -> None:
    first = _bench()
    run_study(config, first, _one_episode(first, spec))
    assert situation_of(config, spec, _dataset(), first).recalled == ()
    second = _bench()
    other = config.model_copy(update={"name": "other"})
    recalled = situation_of(other, spec, _dataset(), second).recalled
    assert {entry.experience.study for entry in recalled} == {"scripted"}
    assert len(recalled) == 3
    assert all(entry.similarity == 1 for entry in recalled)
    advised = situation_of(other, spec, _dataset(), second).recommended
    assert [(item.strategy, item.n) for item in advised] == [(item.strategy, item.n) for item in recommend(recalled)]
    assert 0 < advised[0].score < 1
    assert any("experience" in reason for reason in advised[0].reasons)
    strict = other.model_copy(update={"constraints": (Constraint.parse("size_ratio<=0.0001"),)})
    assert situation_of(strict, spec, _dataset(), second).recommended == ()
    # the same name once more, after its history was removed: what it measured before is news to it
    assert len(situation_of(config, spec, _dataset(), _bench()).recalled) == 3


def test_no_more_is_recalled_than_a_planner_reads(spec: ModelSpec, config: StudyConfig) -> None:
    bench = _bench()
    run_study(config, bench, _one_episode(bench, spec))
    workspace = Workspace(get_settings().workspace)
    (one, *_) = _remembered()
    with workspace.lock():
        add_experiences(workspace, [one.model_copy(update={"study": f"s-{n}"}) for n in range(MOST_RECALLED + 9)])
    other = config.model_copy(update={"name": "other"})
    assert len(situation_of(other, spec, _dataset(), _bench()).recalled) == MOST_RECALLED
