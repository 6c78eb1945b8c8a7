"""Promotion in a real MLflow registry, also when it is interrupted between any two writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from agentic_compression.errors import ModelError
from agentic_compression.records import EpisodeRecord, FrontierDocument, Solution
from agentic_compression.registry import (
    choose_aliases,
    forget_study,
    list_versions,
    model_folder,
    promote_frontier,
    registered_name,
)
from agentic_compression.testing.records import make_evaluation, make_plan, make_record, objectives

if TYPE_CHECKING:
    from mlflow import MlflowClient

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.80, 5.0)}  # accuracy, size in MB


def _records(study: str, folder: Path) -> list[EpisodeRecord]:
    records = []
    for episode, (accuracy, size) in POINTS.items():
        evaluation = make_evaluation(accuracy, latency_ms=10 - episode, size_bytes=int(size * 1e6))
        plan = make_plan(study, episode, f"rtn:bits={8 - episode}")
        records.append(make_record(plan, folder / str(episode), evaluation, run_id=None))
    return records


def _document(study: str, records: list[EpisodeRecord], knee: int = 1) -> FrontierDocument:
    solutions = tuple(
        Solution(
            episode=record.episode,
            strategy=record.strategy.label,
            objectives=record.objectives or objectives(0, 0, 0, 0, 0),
            intervals=record.intervals,
            checkpoint=record.checkpoint.path if record.checkpoint else None,
            is_knee=record.episode == knee,
        )
        for record in records
    )
    return FrontierDocument(
        study=study, objectives=(), baseline=None, reference_point=None, hypervolume=0.5, solutions=solutions
    )


@pytest.fixture
def setting(mlflow_store: tuple[MlflowClient, Path], tmp_path: Path) -> tuple[MlflowClient, str, list[EpisodeRecord]]:
    study = f"study-{uuid4().hex[:8]}"
    return mlflow_store[0], study, _records(study, tmp_path)


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def test_members_become_versions_of_the_one_stored_checkpoint(setting: Any) -> None:
    client, study, records = setting
    document = promote_frontier(client, study, _document(study, records), records)
    assert [solution.registry_version for solution in document.solutions] == ["1", "2", "3"]
    versions = list_versions(client, study)
    assert [Path(version.source) for version in versions] == [Path(record.checkpoint.path) for record in records]
    assert versions[1].objectives["accuracy"] == pytest.approx(0.94)
    assert versions[1].aliases == ("champion",)
    assert set(versions[0].aliases) == {"most-accurate", "leanest"}
    assert set(versions[2].aliases) == {"fastest", "smallest", "greenest"}
    assert model_folder(client, f"models:/{study}@smallest") == Path(records[2].checkpoint.path)


def test_promoting_again_changes_nothing(setting: Any) -> None:
    client, study, records = setting
    first = promote_frontier(client, study, _document(study, records), records)
    before = (_aliases(client, study), list_versions(client, study))
    assert promote_frontier(client, study, _document(study, records), records) == first
    assert (_aliases(client, study), list_versions(client, study)) == before


def test_versions_that_leave_the_frontier_lose_their_aliases(setting: Any) -> None:
    client, study, records = setting
    promote_frontier(client, study, _document(study, records), records)
    promote_frontier(client, study, _document(study, records[:2]), records)
    assert "3" not in _aliases(client, study).values()
    assert [version.state for version in list_versions(client, study)] == ["frontier", "frontier", "superseded"]
    promote_frontier(client, study, _document(study, records), records)  # and back
    assert list_versions(client, study)[2].state == "frontier"


@pytest.mark.parametrize("stop_after", range(0, 12))
def test_an_interruption_between_two_writes_leaves_nothing_behind(
    setting: Any, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, study, records = setting
    promote_frontier(client, study, _document(study, records[:2], knee=0), records)
    writes = (
        "create_model_version",
        "set_model_version_tag",
        "set_registered_model_alias",
        "delete_registered_model_alias",
    )
    count = 0

    def stopping(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count > stop_after:
                raise KeyboardInterrupt
            return original(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for write in writes:
            patch.setattr(client, write, stopping(getattr(client, write)))
        try:
            promote_frontier(client, study, _document(study, records), records)
        except KeyboardInterrupt:
            assert count == stop_after + 1
    promote_frontier(client, study, _document(study, records), records)
    assert len(list_versions(client, study)) == 3
    assert _aliases(client, study) == {
        "champion": "2", "most-accurate": "1", "leanest": "1", "fastest": "3", "smallest": "3", "greenest": "3",
    }  # fmt: skip


def test_choose_aliases_ignores_solutions_outside_the_constraints(setting: Any) -> None:
    _, study, records = setting
    solutions = list(_document(study, records).solutions)
    solutions[2] = solutions[2].model_copy(update={"meets_constraints": False})
    assert choose_aliases(solutions)["smallest"] == 1
    assert choose_aliases([]) == {}


def test_forget_study_leaves_other_studies_versions(setting: Any, tmp_path: Path) -> None:
    client, study, records = setting
    promote_frontier(client, study, _document(study, records), records)
    other = _records(f"{study}-b", tmp_path / "b")
    promote_frontier(client, study, _document(f"{study}-b", other[:1]), other)
    assert forget_study(client, study) == 3
    assert [version.study for version in list_versions(client, study)] == [f"{study}-b"]


@pytest.mark.parametrize("uri", ["models:/x", "models:/x@a@b", "models:/missing-model@champion", "models:/../../etc@x"])
def test_model_folder_says_what_is_wrong(mlflow_store: Any, uri: str) -> None:
    with pytest.raises(ModelError, match="models:/"):
        model_folder(mlflow_store[0], uri)


def test_registered_name_has_only_plain_characters() -> None:
    assert registered_name("meta-llama/Llama-3.1-8B", "gsm8k") == "meta-llama-Llama-3.1-8B--gsm8k"
    assert registered_name("./models/my model/", "a,b") == "my-model--a-b"


def test_members_that_did_not_pass_get_no_version_and_lose_the_one_they_had(setting: Any) -> None:
    client, study, records = setting
    document = promote_frontier(client, study, _document(study, records), records, {2: "latency_ms is inf"})
    assert [solution.registry_version for solution in document.solutions] == ["1", "2", None]
    assert document.solutions[2].withheld == "latency_ms is inf"
    assert _aliases(client, study)["smallest"] == "2"
    promote_frontier(client, study, _document(study, records), records)
    assert _aliases(client, study)["smallest"] == "3"
    promote_frontier(client, study, _document(study, records), records, {2: "latency_ms is inf"})
    assert "3" not in _aliases(client, study).values()
    version = client.get_model_version(study, "3")
    assert (version.tags["acf.state"], version.tags["acf.withheld"]) == ("withheld", "latency_ms is inf")
    promote_frontier(client, study, _document(study, records), records)
    assert client.get_model_version(study, "3").tags["acf.withheld"] == ""


def test_no_alias_points_at_a_checkpoint_that_is_gone(setting: Any) -> None:
    client, study, records = setting
    Path(records[2].checkpoint.path).rmdir()
    document = promote_frontier(client, study, _document(study, records), records)
    assert document.solutions[2].registry_version is None
    assert f"acf rebuild {study} 2" in document.solutions[2].withheld
    assert _aliases(client, study)["smallest"] == "2"
