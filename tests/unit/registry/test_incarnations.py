"""A registered model that is deleted and made again under its name starts with a clean journal."""

from __future__ import annotations

import pytest

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import PromotionPolicy
from agentic_compression.registry import AliasJournal, approve, move_aliases, recover, rollback
from agentic_compression.registry.journal import new_entry
from agentic_compression.registry.moves import Note
from tests.unit.registry.desks import Studio

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.93, 5.0)}
MEMBERS = (0, 1, 2)


@pytest.fixture
def reborn(studio: Studio) -> tuple[Studio, str]:
    """A model with moves by hand, refusals and a request, deleted and made again by another study."""
    study = studio.study(POINTS)
    studio.promote(study, MEMBERS)
    studio.ask("3", "champion")
    rollback(studio.client, studio.desk.journal, studio.name, alias="smallest")
    waits = studio.ask("1", "champion", force=True, reason="wanted", require_approval=True).entry
    assert waits is not None
    assert studio.desk.journal.needed()[studio.name] == {"1", "2", "3"}
    studio.client.delete_registered_model(studio.name)
    journal = studio.desk.journal
    assert journal.pending() == journal.moves(studio.name) == []
    assert journal.needed().get(studio.name, set()) == set()
    studio.promote(studio.study(POINTS), MEMBERS)
    return studio, waits.id


def test_what_was_said_of_the_former_versions_decides_nothing(reborn: tuple[Studio, str]) -> None:
    studio, waits = reborn
    journal = studio.desk.journal
    assert studio.aliases()["smallest"] == "3"  # taken back once, of the former model
    assert [entry.action for entry in journal.moves(studio.name)] == ["follow"]
    assert journal.held_by_hand(studio.name) == frozenset()
    assert journal.needed()[studio.name] == set()
    with pytest.raises(ConfigurationError, match="no request"):
        approve(studio.client, journal, waits)
    rollback(studio.client, journal, studio.name)
    assert studio.aliases() == {}
    with pytest.raises(ConfigurationError, match="no move"):
        rollback(studio.client, journal, studio.name)


def test_the_history_keeps_them(reborn: tuple[Studio, str]) -> None:
    studio, _ = reborn
    journal = studio.desk.journal
    entries = journal.entries(studio.name)
    valid = journal.valid(entries)
    assert [entry.action for entry in entries if entry.kind == "intended"] == [
        "follow",
        "promote",
        "rollback",
        "follow",
    ]
    assert [entry.action for entry in valid] == ["follow", "follow"]
    assert len({entry.born for entry in entries}) == 2


def test_an_intention_for_the_former_model_is_not_carried_out_on_the_new_one(studio: Studio) -> None:
    studio.promote(studio.study(POINTS), MEMBERS)
    journal = studio.desk.journal
    made = journal.moves(studio.name)[0].born
    studio.client.delete_registered_model(studio.name)
    cut_short = new_entry(kind="intended", model=studio.name, action="promote", after={"champion": "1"}, born=made)
    journal.append(cut_short)
    studio.promote(studio.study(POINTS), MEMBERS)
    assert studio.aliases()["champion"] == "2"
    assert recover(studio.client, journal) == []


def test_an_entry_that_does_not_say_goes_by_its_time(studio: Studio) -> None:
    """Journals from before entries said which model they speak of."""
    journal = studio.desk.journal
    for _ in range(2):
        old = new_entry(kind="intended", model=studio.name, action="promote", after={"champion": "1"})
        journal.append(old)
        journal.append(new_entry(id=old.id, kind="done", model=studio.name, action="promote"))
        if studio.client.search_registered_models(f"name = '{studio.name}'"):
            break
        studio.client.create_registered_model(studio.name)
    assert [entry.id for entry in journal.moves(studio.name)] == [old.id]


def test_a_journal_without_a_registry_takes_every_entry(studio: Studio) -> None:
    studio.policy = PromotionPolicy()
    studio.promote(studio.study(POINTS), MEMBERS)
    move_aliases(studio.client, studio.desk.journal, studio.name, {"champion": "1"}, Note("promote", "here"))
    studio.client.delete_registered_model(studio.name)
    assert len(AliasJournal(studio.desk.journal.folder).moves(studio.name)) == 2
