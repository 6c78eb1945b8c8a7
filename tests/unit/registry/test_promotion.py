"""The registry follows the frontier, through the gate, in a real MLflow store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agentic_compression.errors import ModelError
from agentic_compression.records import AliasRule, PromotionPolicy
from agentic_compression.registry import (
    choose_aliases,
    forget_study,
    list_versions,
    model_folder,
    parse_version,
    registered_name,
)
from tests.unit.registry.desks import Studio, frontier

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.93, 5.0)}  # none significantly worse than another
WORSE = {**POINTS, 2: (0.80, 5.0)}
NOT_WORSE = {
    "champion": "2", "most-accurate": "1", "leanest": "1", "fastest": "3", "smallest": "3", "greenest": "3",
}  # fmt: skip


def _folder(studio: Studio, study: str, episode: int) -> Path:
    checkpoint = studio.records(study)[episode].checkpoint
    assert checkpoint is not None
    return Path(checkpoint.path)


def test_members_become_versions_of_the_one_stored_checkpoint(studio: Studio) -> None:
    study = studio.study(POINTS)
    document = studio.promote(study, (0, 1, 2))
    assert [solution.registry_version for solution in document.solutions] == ["1", "2", "3"]
    versions = list_versions(studio.client, studio.name)
    assert [Path(version.source) for version in versions] == [_folder(studio, study, episode) for episode in POINTS]
    assert versions[1].objectives["accuracy"] == pytest.approx(0.94)
    assert studio.aliases() == NOT_WORSE
    uri = f"models:/{studio.name}@smallest"
    assert model_folder(studio.client, uri) == _folder(studio, study, 2)
    assert parse_version(studio.client, uri).version == "3"


def test_versions_carry_the_evidence_of_their_promotion(studio: Studio) -> None:
    studio.promote(studio.study(WORSE), (0, 1, 2))
    tags = parse_version(studio.client, f"{studio.name}/3").tags
    assert tags["acf.baseline.verdict"] == "worse"
    assert tags["acf.baseline.accuracy_delta"].startswith("-0.15 [")
    assert float(tags["acf.baseline.p_value"]) == pytest.approx(2 * 0.5**15, rel=0.01)
    assert tags["acf.baseline.items"] == "100"
    assert tags["acf.baseline.model_size_gb_ratio"].startswith("0.125 ")
    assert tags["acf.code_version"]
    assert len(tags["acf.environment_digest"]) == 16


def test_promoting_again_changes_nothing(studio: Studio) -> None:
    study = studio.study(POINTS)
    first = studio.promote(study, (0, 1, 2))
    before = (studio.aliases(), list_versions(studio.client, studio.name), studio.desk.journal.entries())
    assert studio.promote(study, (0, 1, 2)) == first
    assert (studio.aliases(), list_versions(studio.client, studio.name), studio.desk.journal.entries()) == before


def test_a_significantly_worse_member_takes_no_alias_and_says_why(studio: Studio) -> None:
    study = studio.study(WORSE)
    studio.promote(study, (0, 1))
    before = studio.aliases()
    assert before["smallest"] == "2"
    studio.promote(study, (0, 1, 2))
    assert studio.aliases() == before
    refused = parse_version(studio.client, f"{studio.name}/3").tags["acf.refused.smallest"]
    assert "accuracy not worse: -0.1400 against version 2" in refused
    assert "14 answers lost and 0 gained" in refused


def test_an_alias_without_the_guard_takes_the_smallest_whatever_its_accuracy(studio: Studio) -> None:
    rules = {"smallest": AliasRule(by="model_size_gb", guard_accuracy=False), "fastest": AliasRule(by="latency_ms")}
    studio.policy = PromotionPolicy(aliases=rules)
    study = studio.study(WORSE)
    studio.promote(study, (0, 1))
    studio.promote(study, (0, 1, 2))
    assert studio.aliases() == {"smallest": "3", "fastest": "2"}


def test_versions_that_leave_the_frontier_lose_their_aliases(studio: Studio) -> None:
    study = studio.study(POINTS)
    studio.promote(study, (0, 1, 2))
    studio.promote(study, (0, 1))
    assert "3" not in studio.aliases().values()
    states = [version.state for version in list_versions(studio.client, studio.name)]
    assert states == ["frontier", "frontier", "superseded"]
    studio.promote(study, (0, 1, 2))  # and back
    assert list_versions(studio.client, studio.name)[2].state == "frontier"
    assert studio.aliases() == NOT_WORSE


def test_an_alias_that_lost_its_holder_does_not_fall_to_what_was_refused_before(studio: Studio) -> None:
    study = studio.study({0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.70, 5.0), 3: (0.94, 9.0)})
    studio.promote(study, (0, 1))
    studio.promote(study, (0, 1, 2))
    assert studio.aliases()["smallest"] == "2"
    studio.promote(study, (0, 2, 3), knee=3)
    assert parse_version(studio.client, f"{studio.name}/2").state == "superseded"
    assert {alias: studio.aliases()[alias] for alias in ("smallest", "champion")} == {"smallest": "4", "champion": "4"}


def test_a_study_that_asked_other_items_moves_no_alias_of_another(studio: Studio) -> None:
    first = studio.study(POINTS)
    studio.promote(first, (0, 1, 2))
    second = studio.study({0: (0.95, 40.0), 1: (0.95, 2.0)}, prefix="other")
    studio.promote(second, (0, 1))
    assert studio.aliases() == NOT_WORSE
    refused = parse_version(studio.client, f"{studio.name}/5").tags["acf.refused.smallest"]
    assert "they were asked other items" in refused
    assert "--pipeline" in refused


def test_a_study_that_asked_the_same_items_in_the_same_place_takes_what_it_does_better(studio: Studio) -> None:
    studio.promote(studio.study(POINTS), (0, 1, 2))
    studio.promote(studio.study({0: (0.95, 40.0), 1: (0.93, 2.0)}), (0, 1))
    assert studio.aliases()["smallest"] == "5"


def test_a_study_measured_elsewhere_moves_no_alias(studio: Studio) -> None:
    studio.promote(studio.study(POINTS), (0, 1, 2))
    study = studio.study({0: (0.95, 40.0), 1: (0.93, 2.0)})
    for record in list(studio.history._records[study].values()):
        assert record.evaluation is not None
        place = record.evaluation.environment.model_copy(update={"threads": 64})
        evaluation = record.evaluation.model_copy(update={"environment": place})
        studio.history.record(record.model_copy(update={"environment": place, "evaluation": evaluation}))
    studio.promote(study, (0, 1))
    assert studio.aliases() == NOT_WORSE
    refused = parse_version(studio.client, f"{studio.name}/5").tags["acf.refused.smallest"]
    assert "threads is 64, version 3's unknown" in refused


def test_with_approval_required_nothing_moves_before_it(studio: Studio) -> None:
    studio.policy = PromotionPolicy(require_approval=True)
    study = studio.study(POINTS)
    studio.promote(study, (0, 1, 2))
    studio.promote(study, (0, 1, 2))
    assert studio.aliases() == {}
    waiting = studio.desk.journal.pending(studio.name)
    assert [entry.after for entry in waiting] == [NOT_WORSE]


def test_a_study_without_a_frontier_takes_nothing_from_a_removed_one(studio: Studio) -> None:
    """An interrupted study has nothing to offer: what is served stays, though its own study is gone."""
    first = studio.study({0: (0.95, 40), 1: (0.94, 20)})
    studio.promote(first, (0, 1))
    held = studio.aliases()
    forget_study(studio.client, first)
    studio.promote(studio.study({}), ())
    assert studio.aliases() == held


def test_forget_study_keeps_what_an_alias_serves(studio: Studio) -> None:
    study = studio.study({**POINTS, 3: (0.2, 39.0)})
    studio.promote(study, (0, 1, 2))
    studio.promote(study, (0, 1, 2, 3))
    assert forget_study(studio.client, study) == 1
    left = list_versions(studio.client, studio.name)
    assert [(version.version, version.state) for version in left] == [(str(n), "removed") for n in (1, 2, 3)]
    studio.promote(studio.study({0: (0.9, 40.0), 1: (0.9, 2.0)}, prefix="other"), (0, 1))
    assert {studio.aliases()[alias] for alias in ("champion", "smallest")} == {"6"}


def test_choose_aliases_ignores_solutions_outside_the_constraints(studio: Studio) -> None:
    solutions = list(frontier("s", studio.records(studio.study(POINTS))).solutions)
    solutions[2] = solutions[2].model_copy(update={"meets_constraints": False})
    assert choose_aliases(solutions)["smallest"] == 1
    assert choose_aliases([]) == {}


@pytest.mark.parametrize("uri", ["models:/x", "models:/x@a@b", "models:/missing-model@champion", "models:/../../etc@x"])
def test_model_folder_says_what_is_wrong(studio: Studio, uri: str) -> None:
    with pytest.raises(ModelError, match="models:/"):
        model_folder(studio.client, uri)


def test_registered_name_has_only_plain_characters() -> None:
    assert registered_name("meta-llama/Llama-3.1-8B", "gsm8k") == "meta-llama-Llama-3.1-8B--gsm8k"
    assert registered_name("./models/my model/", "a,b") == "my-model--a-b"


def test_members_that_did_not_pass_get_no_version_and_lose_the_one_they_had(studio: Studio) -> None:
    study, members = studio.study(POINTS), (0, 1, 2)
    document = studio.promote(study, members, withheld={2: "latency_ms is inf"})
    assert [solution.registry_version for solution in document.solutions] == ["1", "2", None]
    assert document.solutions[2].withheld == "latency_ms is inf"
    assert studio.aliases()["smallest"] == "2"
    studio.promote(study, members)
    assert studio.aliases()["smallest"] == "3"
    studio.promote(study, members, withheld={2: "latency_ms is inf"})
    assert "3" not in studio.aliases().values()
    tags = parse_version(studio.client, f"{studio.name}/3").tags
    assert (tags["acf.state"], tags["acf.withheld"]) == ("withheld", "latency_ms is inf")
    studio.promote(study, members)
    assert parse_version(studio.client, f"{studio.name}/3").tags["acf.withheld"] == ""


def test_no_alias_points_at_a_checkpoint_that_is_gone(studio: Studio) -> None:
    study = studio.study(POINTS)
    studio.promote(study, (0, 1, 2))
    shutil.rmtree(_folder(studio, study, 2))
    document = studio.promote(study, (0, 1, 2))
    assert document.solutions[2].registry_version is None
    assert f"acf rebuild {study} 2" in document.solutions[2].withheld
    assert studio.aliases()["smallest"] == "2"
    with pytest.raises(ModelError, match="is gone"):
        model_folder(studio.client, f"models:/{studio.name}/3")
