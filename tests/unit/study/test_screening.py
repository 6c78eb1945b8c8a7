"""What an episode's evaluation takes along, and what becomes of what it gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agentic_compression import study as domain
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.execution import TaskOutcome
from agentic_compression.planning.reward import known_values
from agentic_compression.records import (
    BenchmarkScore,
    CompressionOutcome,
    DatasetSpec,
    DatasetTask,
    EpisodePlan,
    EvaluationOutcome,
    Record,
    Report,
    RungReading,
    ScreeningPlan,
    Strategy,
    StudyConfig,
)
from agentic_compression.settings import get_settings
from agentic_compression.study.screening import LEAST_RIVALS, kl_evidence, screening_plan
from agentic_compression.testing.memory_history import MemoryHistory
from agentic_compression.testing.records import make_checkpoint, make_evaluation, make_plan, make_record
from agentic_compression.testing.scripted_supervisor import ScriptedSupervisor

CONFIG = StudyConfig(model="demo", dataset="demo", name="s")
READINGS = (
    RungReading(rung=0, quantity="model_size_gb", value=0.002, low=0.002, high=0.002, n=0, passed=True),
    RungReading(rung=1, quantity="kl", value=0.8, low=0.7, high=0.9, n=10, passed=True),
    RungReading(rung=2, quantity="accuracy", value=0.4, low=0.3, high=0.5, n=60, passed=False, reason="too little"),
)


class Recording(ScriptedSupervisor):
    """Remembers requests; answers an evaluation with ``outcome`` where one is planted."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[EvaluationRequest] = []
        self.outcome: EvaluationOutcome | None = None

    def run(self, entry: str, request: Record, **options: Any) -> TaskOutcome:
        if isinstance(request, EvaluationRequest):
            self.requests.append(request)
            if self.outcome is not None:
                result = self.outcome.model_dump(mode="json")
                return TaskOutcome(status="succeeded", result=result, wall_seconds=1.0, cpu_seconds=1.0)
        return super().run(entry, request, **options)


@pytest.fixture
def bench(tmp_path: Path) -> domain.Workbench:
    bench = domain.Workbench(get_settings(), MemoryHistory(), Recording())
    bench.history.open_study(CONFIG)
    return bench


def _evaluated(accuracy: float, size: int) -> Any:
    evaluation = make_evaluation(accuracy=accuracy, size_bytes=size)
    items = tuple(f"i{number}" for number in range(100))
    scores = tuple(score.model_copy(update={"items": items}) for score in evaluation.benchmarks)
    return evaluation.model_copy(update={"benchmarks": scores})


def _measured(bench: domain.Workbench, folder: Path, count: int) -> None:
    for episode in range(count):
        evaluation = _evaluated(0.9 - 0.1 * episode, 10_000_000 - 2_000_000 * episode)
        plan = make_plan("s", episode, "" if episode == 0 else f"rtn:bits={episode + 1}")
        readings = (READINGS[1].model_copy(update={"value": 0.1 * episode}),)
        bench.history.record(make_record(plan, folder / str(episode), evaluation, screening=readings))


def _plan(episode: int, source: str = "tpe") -> EpisodePlan:
    return EpisodePlan(study="s", episode=episode, strategy=Strategy(), planner="tpe", source=source, seed=0)


def test_the_baseline_has_no_rivals_and_is_not_rejected(bench: domain.Workbench) -> None:
    plan = screening_plan(CONFIG, _plan(0, "baseline"), bench)
    assert plan.rivals == ()
    assert not plan.reject


def test_the_first_candidates_and_seeds_are_measured_in_full(bench: domain.Workbench, tmp_path: Path) -> None:
    _measured(bench, tmp_path, LEAST_RIVALS - 1)
    assert not screening_plan(CONFIG, _plan(9), bench).reject
    _measured(bench, tmp_path, LEAST_RIVALS)
    assert screening_plan(CONFIG, _plan(9), bench).reject
    assert not screening_plan(CONFIG, _plan(9, "seed"), bench).reject
    off = CONFIG.model_copy(update={"screening": False})
    assert not screening_plan(off, _plan(9), bench).reject
    assert screening_plan(off, _plan(9), bench).rivals  # they still tell whether the report items are asked


def test_rivals_carry_answers_in_the_order_of_the_items(bench: domain.Workbench, tmp_path: Path) -> None:
    _measured(bench, tmp_path, 4)
    plan = screening_plan(CONFIG, _plan(9), bench)
    assert [rival.episode for rival in plan.rivals] == [0, 1, 2, 3]
    assert plan.items == {"demo_mc": tuple(f"i{number}" for number in range(100))}
    assert sum(plan.rivals[0].scores["demo_mc"]) == 90
    assert plan.rivals[2].kl == pytest.approx(0.2)
    assert ScreeningPlan.model_validate_json(plan.model_dump_json()) == plan


def test_answers_that_cannot_be_paired_stay_behind(bench: domain.Workbench, tmp_path: Path) -> None:
    _measured(bench, tmp_path, 3)
    other = make_evaluation(accuracy=0.95, size_bytes=1_000_000)  # its items have no names
    bench.history.record(make_record(make_plan("s", 3, "rtn"), tmp_path / "3", other))
    plan = screening_plan(CONFIG, _plan(9), bench)
    assert plan.rivals[3].scores == {}


def test_divergence_is_remembered_of_rejected_episodes_too(tmp_path: Path) -> None:
    record = make_record(make_plan("s", 5, "rtn"), tmp_path / "5")
    rejected = record.model_copy(
        update={"status": "rejected", "objectives": None, "intervals": {}, "screening": READINGS}
    )
    assert [(pair.kl, pair.accuracy) for pair in kl_evidence([rejected])] == [(0.8, 0.5)]


def test_planners_learn_from_a_rejected_episode_what_was_seen_of_it(tmp_path: Path) -> None:
    record = make_record(make_plan("s", 5, "rtn"), tmp_path / "5").model_copy(
        update={"status": "rejected", "objectives": None}
    )
    seen = known_values(record.model_copy(update={"screening": READINGS}))
    assert (seen["accuracy"], seen["model_size_gb"]) == (0.4, 0.002)
    assert "accuracy" not in known_values(record.model_copy(update={"screening": READINGS[:2]}))


def _dataset() -> DatasetSpec:
    task = DatasetTask(name="demo_mc", kind="multiple_choice", path="/nowhere", items=100, digest="x")
    return DatasetSpec(dataset="demo", name="demo", tasks=(task,), digest="x")


def test_a_study_asks_the_search_side_and_by_hand_asks_all(bench: domain.Workbench, tmp_path: Path) -> None:
    made = CompressionOutcome(status="succeeded", checkpoint=make_checkpoint(tmp_path / "c", Strategy()))
    domain.evaluate(CONFIG, _dataset(), made, bench, _plan(0, "baseline"))
    domain.evaluate(CONFIG, _dataset(), made, bench)
    recording = bench.supervisor
    assert isinstance(recording, Recording)
    first, second = recording.requests
    assert (first.split, first.report_share, first.teacher) == ("search", 0.5, None)
    assert first.screening is not None
    assert (second.split, second.screening) == ("all", None)


def test_a_rejected_episode_is_recorded_with_its_readings_and_is_no_failure_of_the_study(
    bench: domain.Workbench, tmp_path: Path
) -> None:
    _measured(bench, tmp_path, 4)
    recording = bench.supervisor
    assert isinstance(recording, Recording)
    recording.outcome = EvaluationOutcome(status="rejected", error="rung 2: at most 0.500", screening=READINGS)
    made = CompressionOutcome(status="succeeded", checkpoint=make_checkpoint(tmp_path / "c", Strategy()))
    plan = bench.history.claim(make_plan("s", 4, "rtn"))
    outcome = domain.evaluate(CONFIG, _dataset(), made, bench, plan)
    document = domain.update_frontier(CONFIG, plan, made, outcome, bench)
    record = bench.history.records("s")[4]
    assert (record.status, record.error, record.objectives) == ("rejected", "rung 2: at most 0.500", None)
    assert record.screening == READINGS
    assert 4 not in {solution.episode for solution in document.solutions}
    results = json.loads((bench.folder("s") / "episode_004" / "results.json").read_text())
    assert results["status"] == "rejected"
    assert results["screening"][2]["reason"] == "too little"


def test_the_report_is_recorded_and_decides_the_frontier(bench: domain.Workbench, tmp_path: Path) -> None:
    recording = bench.supervisor
    assert isinstance(recording, Recording)
    evaluation = _evaluated(0.9, 10_000_000)
    score = BenchmarkScore.model_validate({**evaluation.benchmarks[0].model_dump(), "outcomes": (), "items": ()})
    report = Report(accuracy=evaluation.accuracy.model_copy(update={"value": 0.88}), benchmarks=(score,))
    recording.outcome = EvaluationOutcome(status="succeeded", evaluation=evaluation, report=report)
    made = CompressionOutcome(status="succeeded", checkpoint=make_checkpoint(tmp_path / "c", Strategy()))
    plan = bench.history.claim(make_plan("s", 0, ""))
    outcome = domain.evaluate(CONFIG, _dataset(), made, bench, plan)
    document = domain.update_frontier(CONFIG, plan, made, outcome, bench)
    assert document.baseline is not None
    assert document.baseline.accuracy == 0.88
    assert document.solutions[0].search_accuracy == pytest.approx(0.9)
    assert bench.history.report("s", 0) == report
    results = json.loads((bench.folder("s") / "episode_000" / "results.json").read_text())
    assert results["report_accuracy"]["value"] == 0.88
    assert results["objectives"]["accuracy"] == pytest.approx(0.9)
