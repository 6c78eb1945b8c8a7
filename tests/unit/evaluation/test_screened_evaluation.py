"""Evaluations that climb the rungs and are asked the report side, with a real tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentic_compression.evaluation.evaluate import evaluate
from agentic_compression.evaluation.quality_probe import measure_quality
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.evaluation.store import evaluation_key
from agentic_compression.records import (
    CheckpointRef,
    DatasetSpec,
    DatasetTask,
    EvaluationSettings,
    Objectives,
    Rival,
    ScreeningPlan,
)
from agentic_compression.storage import folder_bytes

TASKS = Path(__file__).resolve().parents[3] / "configs" / "tasks"
ITEMS = 60


pytestmark = pytest.mark.usefixtures("memory_measured_elsewhere")


@pytest.fixture
def baseline(tiny_path: Path, tmp_path: Path, sentences: list[str]) -> EvaluationRequest:
    """The tiny model as a study's baseline: the search side, no rivals."""
    rows = [
        {"id": f"m{n}", "question": f"w{n} w{n % 7} w{n % 11}", "choices": ["w1", "w2 w3", "w4"], "answer": n % 3}
        for n in range(ITEMS)
    ]
    (tmp_path / "mc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences))
    task = DatasetTask(name="mc", kind="multiple_choice", path=str(tmp_path / "mc.jsonl"), items=ITEMS, digest="mc")
    return EvaluationRequest(
        checkpoint=CheckpointRef(
            path=str(tiny_path), digest="tiny", size_bytes=folder_bytes(tiny_path), strategy_key="baseline"
        ),
        dataset=DatasetSpec(
            dataset="test", name="test", tasks=(task,), perplexity_path=str(tmp_path / "text.jsonl"), digest="all"
        ),
        settings=EvaluationSettings(
            prompt_tokens=16, new_tokens=4, runs=3, warmup_runs=1, threads=1, batch_size=5, perplexity_tokens=400
        ),
        store_root=str(tmp_path / "store"),
        tasks_dir=str(TASKS),
        split="search",
        screening=ScreeningPlan(reject=False),
    )


def _rival(accuracy: float, share: float, episode: int, *, size_gb: float, latency_ms: float) -> Rival:
    objectives = Objectives(
        accuracy=accuracy,
        latency_ms=latency_ms * share,
        memory_gb=0.001 * share,
        model_size_gb=size_gb * share,
        co2_grams=latency_ms * share * 1e-6,
    )
    return Rival(episode=episode, objectives=objectives)


def _candidate(baseline: EvaluationRequest, rivals: tuple[Rival, ...]) -> EvaluationRequest:
    checkpoint = baseline.checkpoint.model_copy(update={"digest": "other"})
    plan = ScreeningPlan(rivals=rivals)
    return baseline.model_copy(
        update={"checkpoint": checkpoint, "screening": plan, "teacher": baseline.checkpoint, "memory_repeats": 1}
    )


def _hopeless(baseline: EvaluationRequest) -> EvaluationRequest:
    """Rivals that are perfect at a fraction of what the tiny model costs, beside a baseline as costly as it is."""
    size = baseline.checkpoint.size_bytes / 1e9
    rivals = (
        _rival(0.99, 1.0, 0, size_gb=size, latency_ms=1e6),
        _rival(0.99, 0.01, 1, size_gb=size, latency_ms=1e-3),
    )
    return _candidate(baseline, rivals)


def test_a_baseline_is_asked_both_sides_once_and_they_share_no_item(baseline: EvaluationRequest) -> None:
    outcome = evaluate(baseline)
    assert outcome.evaluation is not None
    assert outcome.report is not None
    search, report = set(outcome.evaluation.benchmarks[0].items), set(outcome.report.benchmarks[0].items)
    assert search | report == {f"m{n}" for n in range(ITEMS)}
    assert not search & report
    assert outcome.evaluation.split == "search"
    assert outcome.report.warnings == ()
    again = evaluate(baseline)
    assert again.cached
    assert again.report == outcome.report


def test_asking_in_portions_gives_what_asking_at_once_gives(baseline: EvaluationRequest) -> None:
    whole = evaluate(baseline)
    worst = _rival(0.0, 1.0, 0, size_gb=1.0, latency_ms=1e6)
    request = _candidate(baseline, (worst,))
    climbed = evaluate(request)
    assert climbed.status == "succeeded"
    assert climbed.evaluation is not None
    assert whole.evaluation is not None
    assert climbed.evaluation.benchmarks == whole.evaluation.benchmarks
    assert climbed.report is not None
    quantities = [reading.quantity for reading in climbed.screening]
    before = ["model_size_gb", "weights_gb", "co2_floor_grams", "latency_floor_ms", "memory_floor_gb", "latency_ms"]
    assert quantities[:7] == [*before, "kl"]
    read = {reading.quantity: reading.value for reading in climbed.screening}
    assert 0 < read["latency_floor_ms"] < 1e6
    assert read["co2_floor_grams"] > 0
    assert read["memory_floor_gb"] == pytest.approx(0.97e-3)  # of the planted megabyte
    assert 0 < climbed.load_seconds < climbed.seconds
    assert quantities.count("accuracy") > 2
    assert climbed.screening[-1].value == pytest.approx(climbed.evaluation.accuracy.value)
    # the teacher is the same model: no divergence at all
    assert climbed.evaluation.divergence is not None
    assert climbed.evaluation.divergence.kl.value == pytest.approx(0.0, abs=1e-6)


def test_a_rejected_candidate_stores_nothing_and_says_why(baseline: EvaluationRequest) -> None:
    outcome = evaluate(_hopeless(baseline))
    assert (outcome.status, outcome.evaluation, outcome.report) == ("rejected", None, None)
    assert outcome.error is not None
    assert outcome.error.startswith("rung ")
    assert not outcome.screening[-1].passed
    assert outcome.joules > 0
    assert not list(Path(baseline.store_root).glob("*.json"))


def test_what_was_measured_before_is_not_rejected_and_asked_for_its_report_only_where_it_stands(
    baseline: EvaluationRequest,
) -> None:
    hopeless = _hopeless(baseline)
    assert hopeless.screening is not None
    measured = evaluate(hopeless.model_copy(update={"screening": ScreeningPlan(reject=False)}))
    assert measured.status == "succeeded"
    dominated = evaluate(hopeless)
    assert (dominated.status, dominated.cached, dominated.report) == ("succeeded", True, None)
    assert [reading.quantity for reading in dominated.screening] == ["weights_gb", "kl", "accuracy"]
    (report,) = Path(baseline.store_root).glob("*.report.json")
    report.unlink()  # as if the process had been killed before the report was stored
    stands = evaluate(hopeless.model_copy(update={"screening": ScreeningPlan(reject=False)}))
    assert not stands.cached
    assert stands.report is not None
    assert stands.evaluation == measured.evaluation


def test_split_and_share_are_part_of_the_key(baseline: EvaluationRequest) -> None:
    keys = {
        evaluation_key(baseline.model_copy(update=changes), "cpu", 1)
        for changes in (
            {},
            {"split": "report"},
            {"split": "all"},
            {"report_share": 0.4},
            {"teacher": baseline.checkpoint},
        )
    }
    assert len(keys) == 5
    by_hand = [baseline.model_copy(update={"split": "all", "report_share": share}) for share in (0.4, 0.5)]
    assert len({evaluation_key(request, "cpu", 1) for request in by_hand}) == 1
    assert evaluation_key(baseline.model_copy(update={"screening": None}), "cpu", 1) in keys


def test_a_condition_is_decided_on_the_search_side(baseline: EvaluationRequest) -> None:
    quality = measure_quality(baseline.model_copy(update={"screening": None}))
    outcome = evaluate(baseline)
    assert outcome.evaluation is not None
    assert quality.accuracy == pytest.approx(outcome.evaluation.accuracy.value)


def test_a_task_of_plain_text_is_measured_in_full_after_the_first_rungs(
    baseline: EvaluationRequest, tmp_path: Path, sentences: list[str]
) -> None:
    rows = [{"id": f"t{n}", "text": text} for n, text in enumerate(sentences)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = DatasetTask(name="t", kind="text", path=str(tmp_path / "t.jsonl"), items=len(rows), digest="t")
    dataset = baseline.dataset.model_copy(update={"tasks": (task,)})
    rival = _rival(0.0, 1.0, 0, size_gb=1.0, latency_ms=1e6)
    outcome = evaluate(_candidate(baseline.model_copy(update={"dataset": dataset}), (rival,)))
    assert outcome.error is None
    assert outcome.evaluation is not None
    assert outcome.evaluation.benchmarks[0].groups
    assert "accuracy" not in [reading.quantity for reading in outcome.screening]
