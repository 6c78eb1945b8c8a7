"""What an alias points at is never deleted, nor what a rollback or an approval would need."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from agentic_compression.records import PromotionRequest
from agentic_compression.registry import forget_study, list_versions, rollback
from agentic_compression.registry.mlflow_model import LOCATION, checkpoint_of
from agentic_compression.settings import get_settings
from agentic_compression.study.promotion import promote, verdict_on
from agentic_compression.study.retention import drop_dominated
from tests.unit.registry.desks import Studio, frontier

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.93, 5.0)}


@pytest.fixture
def stored(studio: Studio) -> tuple[Studio, str]:
    """A study whose checkpoints lie where retention looks for them, all of them on the frontier."""
    studio.home = get_settings().checkpoints
    study = studio.study(POINTS)
    studio.promote(study, (0, 1, 2))
    return studio, study


def _promote(studio: Studio, version: str, alias: str, **options: bool) -> None:
    request = PromotionRequest(model=studio.name, version=version, alias=alias, **options)
    desk = studio.desk
    assert promote(desk, request, verdict_on(desk, request)).status in {"promoted", "requested"}


def _left(studio: Studio, study: str, members: tuple[int, ...]) -> set[int]:
    """Episodes whose checkpoints are left after a retention that sees this frontier."""
    document = frontier(study, [record for record in studio.records(study) if record.episode in members])
    drop_dominated(studio.bench, document, studio.records(study))
    found = {record.episode: record.checkpoint for record in studio.records(study)}
    return {episode for episode, item in found.items() if item is not None and Path(item.path).is_dir()}


def test_checkpoints_under_an_alias_stay_when_the_frontier_loses_them(stored: tuple[Studio, str]) -> None:
    studio, study = stored
    assert _left(studio, study, ()) == {0, 1, 2}


def test_without_an_alias_they_go_and_their_thin_models_with_them(stored: tuple[Studio, str]) -> None:
    studio, study = stored
    for alias in studio.aliases():
        studio.client.delete_registered_model_alias(studio.name, alias)
    assert _left(studio, study, (1,)) == {1}
    assert len(list((get_settings().artifacts / "models").glob("*/*/MLmodel"))) == 1


def test_what_an_alias_names_stays_though_its_thin_model_is_gone(stored: tuple[Studio, str]) -> None:
    studio, study = stored
    for alias in set(studio.aliases()) - {"champion"}:
        studio.client.delete_registered_model_alias(studio.name, alias)
    shutil.rmtree(get_settings().artifacts / "models")
    assert _left(studio, study, ()) == {1}


def test_thin_models_of_checkpoints_elsewhere_stay_when_those_are_out_of_reach(
    stored: tuple[Studio, str], tmp_path: Path
) -> None:
    studio, study = stored
    models = get_settings().artifacts / "models"
    (thin, *_) = (location.parent for location in models.glob(f"*/*/{LOCATION}"))
    unplugged = tmp_path / "unplugged" / "checkpoint"
    (thin / LOCATION).write_text((thin / LOCATION).read_text().replace(str(checkpoint_of(thin)), str(unplugged)))
    assert checkpoint_of(thin) == unplugged
    _left(studio, study, (0, 1, 2))
    assert thin.is_dir()


def test_nothing_goes_while_an_alias_is_moved(stored: tuple[Studio, str]) -> None:
    """Retention waits for the journal: between its look and its deletion no alias may come to point at what goes."""
    studio, study = stored
    done = threading.Event()

    def drop() -> None:
        _left(studio, study, (0,))
        done.set()

    for alias in studio.aliases():
        studio.client.delete_registered_model_alias(studio.name, alias)
    with studio.desk.journal.locked():
        thread = threading.Thread(target=drop)
        thread.start()
        assert not done.wait(1.0)
        studio.client.set_registered_model_alias(studio.name, "champion", "3")
    thread.join()
    assert _left(studio, study, (0,)) == {0, 2}


def test_what_a_move_by_hand_left_stays_for_its_rollback(stored: tuple[Studio, str]) -> None:
    studio, study = stored
    for alias in set(studio.aliases()) - {"champion"}:
        studio.client.delete_registered_model_alias(studio.name, alias)
    _promote(studio, "3", "champion")
    assert _left(studio, study, (2,)) == {1, 2}
    desk = studio.desk
    rollback(desk.client, desk.journal, studio.name)
    assert studio.aliases()["champion"] == "2"
    assert _left(studio, study, ()) == {1}


def test_what_waits_for_approval_stays(stored: tuple[Studio, str]) -> None:
    studio, study = stored
    _promote(studio, "3", "champion", require_approval=True)
    for alias in studio.aliases():
        studio.client.delete_registered_model_alias(studio.name, alias)
    assert _left(studio, study, ()) == {1, 2}


def test_versions_of_a_removed_study_go_when_their_last_alias_does(stored: tuple[Studio, str]) -> None:
    studio, study = stored
    forget_study(studio.client, study)
    assert _left(studio, study, ()) == {0, 1, 2}
    for alias in studio.aliases():
        studio.client.delete_registered_model_alias(studio.name, alias)
    studio.history.forget(study)
    other = studio.study({0: (0.9, 40.0)})
    folders = [Path(version.source) for version in list_versions(studio.client, studio.name)]
    assert _left(studio, other, (0,)) == {0}
    assert not any(folder.exists() for folder in folders)
    assert [item for item in list_versions(studio.client, studio.name) if item.study == study] == []


def test_a_damaged_journal_deletes_nothing(stored: tuple[Studio, str]) -> None:
    studio, study = stored
    for alias in studio.aliases():
        studio.client.delete_registered_model_alias(studio.name, alias)
    (get_settings().root / "data" / "registry" / "journal.jsonl").write_text("broken\n")
    assert _left(studio, study, ()) == {0, 1, 2}
