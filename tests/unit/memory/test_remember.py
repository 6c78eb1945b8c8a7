"""From episode records to experiences, and the notes about checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.memory import (
    KeptCheckpoint,
    Workspace,
    experiences_of,
    forget_checkpoints,
    list_quarantined,
    note_checkpoints,
    read_checkpoints,
    read_experiences,
    remember,
)
from agentic_compression.memory.validation import problem_with
from agentic_compression.records import Environment, EpisodeRecord, RungReading, StudyConfig
from agentic_compression.testing.records import make_evaluation, make_plan, make_record
from tests.unit.memory.experiences import make_spec

CONFIG = StudyConfig(model="demo", dataset="demo", name="first", objective="small")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def records(tmp_path: Path) -> list[EpisodeRecord]:
    baseline = make_evaluation(accuracy=0.9, latency_ms=10, memory_gb=0.05, size_bytes=10_000_000)
    small = make_evaluation(accuracy=0.8, latency_ms=20, memory_gb=0.02, size_bytes=2_500_000)
    kl = RungReading(rung=1, quantity="kl", value=0.25, low=0.2, high=0.3, n=100, passed=True)
    gpu = Environment(device="cuda:0 (A)")
    known = {"evaluation": None, "screening": (kl,), "environment": gpu, "finished_at": "2026-11-01T10:00:00+00:00"}
    one = make_record(make_plan("first", 1, "rtn:bits=4"), tmp_path / "1", small).model_copy(update=known)
    lost = {"status": "oom", "objectives": None, "evaluation": None, "intervals": {}, "checkpoint": None}
    lost["error"] = "killed\x1b[31m " + "x" * 900
    return [
        make_record(make_plan("first", 0), tmp_path / "0", baseline, environment=gpu),
        one,
        make_record(make_plan("first", 2, "nf4"), tmp_path / "2").model_copy(update=lost),
    ]


def test_an_experience_is_in_proportion_to_its_own_baseline(records: list[EpisodeRecord]) -> None:
    one, two = experiences_of(records, make_spec(), CONFIG, "demo")
    assert one.accuracy == pytest.approx(0.8)
    assert one.baseline_accuracy == pytest.approx(0.9)
    assert one.items == 100
    assert one.kl == 0.25
    assert one.ratios == pytest.approx({"latency_ms": 2.0, "memory_gb": 0.4, "model_size_gb": 0.25, "co2_grams": 2.0})
    assert (one.study, one.episode, one.model, one.dataset, one.tasks) == ("first", 1, "demo", "demo", ("demo_mc",))
    assert (one.family, one.parameters, one.objective, one.device) == ("llama", 10**9, "small", "cuda:0 (A)")
    assert one.at == "2026-11-01T10:00:00+00:00"
    assert (two.status, two.accuracy, two.ratios, two.device) == ("oom", None, {}, "cuda:0 (A)")
    assert two.error.startswith("killed [31m xxx")
    assert all(problem_with(item) is None for item in (one, two))


def test_without_a_measured_baseline_nothing_has_a_ratio(records: list[EpisodeRecord]) -> None:
    (one, *_) = experiences_of(records[1:], make_spec(), CONFIG, "demo")
    assert one.ratios == {}
    assert one.baseline_accuracy is None
    assert problem_with(one) is None


def test_the_name_of_a_local_folder_does_not_tell_where_it_lay(records: list[EpisodeRecord]) -> None:
    config = CONFIG.model_copy(update={"model": "/home/someone/models/mine/"})
    local = experiences_of(records, make_spec(path="/home/someone/models/mine"), config, "demo")
    assert {item.model for item in local} == {"mine"}
    hub = experiences_of(records, make_spec(), CONFIG.model_copy(update={"model": "meta/llama"}), "demo")
    assert {item.model for item in hub} == {"meta/llama"}


def test_remembering_again_adds_only_what_is_new(workspace: Workspace, records: list[EpisodeRecord]) -> None:
    assert remember(workspace, records[:2], make_spec(), CONFIG, "demo") == 1
    assert remember(workspace, records[:2], make_spec(), CONFIG, "demo") == 0
    assert remember(workspace, records[::-1], make_spec(), CONFIG, "demo") == 1
    assert remember(workspace, records, make_spec(), CONFIG.model_copy(update={"objective": "other"}), "demo") == 0
    stored = read_experiences(workspace).values()
    assert sorted(item.episode for item in stored) == [1, 2]


def test_an_absurd_measurement_is_set_aside(workspace: Workspace, records: list[EpisodeRecord]) -> None:
    goals = records[1].objectives
    assert goals is not None
    frozen = records[1].model_copy(update={"objectives": goals.model_copy(update={"latency_ms": 1e9})})
    for _ in range(2):
        assert remember(workspace, [records[0], frozen], make_spec(), CONFIG, "demo") == 0
    (found,) = list_quarantined(workspace)
    assert found.origin == "episode 1 of first"
    assert "latency_ms" in found.reason


def test_kept_checkpoints_are_noted_without_weights(workspace: Workspace, records: list[EpisodeRecord]) -> None:
    assert note_checkpoints(workspace, "first", records, frozenset({1})) == 2
    one = next(item for item in read_checkpoints(workspace) if item.episode == 1)
    assert records[1].checkpoint is not None
    assert one == KeptCheckpoint(
        study="first",
        episode=1,
        path=records[1].checkpoint.path,
        digest=records[1].checkpoint.digest,
        size_bytes=2_500_000,
        strategy=records[1].strategy,
        objectives=records[1].objectives,
        on_frontier=True,
    )
    assert sum(path.stat().st_size for path in workspace.checkpoints.rglob("*.json")) < 4000


def test_a_checkpoint_that_is_gone_or_the_users_own_is_not_noted(
    workspace: Workspace, records: list[EpisodeRecord]
) -> None:
    note_checkpoints(workspace, "first", records)
    assert records[0].checkpoint is not None
    shared = records[0].checkpoint.model_copy(update={"shared": True})
    Path(records[1].checkpoint.path).rmdir() if records[1].checkpoint else None
    assert note_checkpoints(workspace, "first", [records[0].model_copy(update={"checkpoint": shared}), records[1]]) == 0
    assert read_checkpoints(workspace) == ()


def test_damaged_notes_are_set_aside_and_those_of_a_study_can_be_forgotten(
    workspace: Workspace, records: list[EpisodeRecord]
) -> None:
    note_checkpoints(workspace, "first", records)
    note_checkpoints(workspace, "second", records)
    (workspace.checkpoints / "first" / "000.json").write_text("{")
    text = (workspace.checkpoints / "second" / "001.json").read_text()
    (workspace.checkpoints / "second" / "009.json").write_text(text)
    assert [(item.study, item.episode) for item in read_checkpoints(workspace)] == [
        ("first", 1),
        ("second", 0),
        ("second", 1),
    ]
    assert len(list_quarantined(workspace)) == 2
    with workspace.lock():
        assert forget_checkpoints(workspace, "..") == 0
        assert forget_checkpoints(workspace, "second") == 2
        assert forget_checkpoints(workspace) == 1
