"""What waits for an approval: a study's requests beside a person's, and what becomes of both."""

from __future__ import annotations

import pytest

from agentic_compression.errors import AcfError, ConfigurationError
from agentic_compression.records import JournalEntry, PromotionPolicy
from agentic_compression.registry import approve, reject, rollback
from agentic_compression.study.promotion import approve as try_and_approve
from tests.unit.registry.desks import Studio

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.93, 5.0)}


@pytest.fixture
def followed(studio: Studio) -> tuple[Studio, str]:
    """A study whose three members hold the aliases, and from now on every move needs an approval."""
    study = studio.study(POINTS)
    studio.promote(study, (0, 1, 2))
    studio.policy = PromotionPolicy(require_approval=True)
    return studio, study


def _waiting(studio: Studio) -> list[JournalEntry]:
    return studio.desk.journal.pending(studio.name)


def _approve(studio: Studio, entry: JournalEntry) -> None:
    approve(studio.client, studio.desk.journal, entry.id)


def test_taking_an_alias_away_is_asked_as_well(followed: tuple[Studio, str]) -> None:
    studio, study = followed
    before = studio.aliases()
    studio.promote(study, (0, 1, 2), withheld=dict.fromkeys((0, 1, 2), "not trusted"))
    assert studio.aliases() == before
    (entry,) = _waiting(studio)
    assert (entry.before, entry.after) == (before, dict.fromkeys(before, ""))
    _approve(studio, entry)
    assert studio.aliases() == {}


def test_an_empty_frontier_takes_the_aliases_of_what_was_withdrawn(studio: Studio) -> None:
    study = studio.study(POINTS)
    assert studio.promote(study, ()).solutions == ()
    assert studio.client.search_registered_models(f"name = '{studio.name}'") == []
    studio.promote(study, (0, 1, 2))
    studio.promote(study, (), withheld=dict.fromkeys((0, 1), "not trusted"))
    assert studio.aliases() == {}
    states = {
        str(item.version): item.tags["acf.state"]
        for item in studio.client.search_model_versions(f"name='{studio.name}'")
    }
    assert states == {"1": "withheld", "2": "withheld", "3": "superseded"}


def test_a_study_that_wants_nothing_any_more_withdraws_its_request(followed: tuple[Studio, str]) -> None:
    studio, study = followed
    studio.promote(study, (0, 1))
    assert len(_waiting(studio)) == 1
    studio.promote(study, (0, 1, 2))  # version 3 is back
    assert _waiting(studio) == []
    last = studio.desk.journal.entries(studio.name)[-1]
    assert (last.kind, last.withdrawn) == ("rejected", True)
    studio.promote(study, (0, 1))  # a withdrawal is no refusal: it may ask again
    assert len(_waiting(studio)) == 1


def test_a_study_that_may_move_by_itself_again_waits_for_nobody(followed: tuple[Studio, str]) -> None:
    studio, study = followed
    studio.promote(study, (0, 1))
    assert len(_waiting(studio)) == 1
    studio.policy = PromotionPolicy()
    studio.promote(study, (0, 1))
    assert _waiting(studio) == []
    assert "3" not in studio.aliases().values()


def test_what_a_person_refused_a_study_does_not_ask_again(followed: tuple[Studio, str]) -> None:
    studio, study = followed
    studio.promote(study, (0, 1))
    (entry,) = _waiting(studio)
    reject(studio.desk.journal, entry.id, why="keep it")
    studio.promote(study, (0, 1))
    assert _waiting(studio) == []


def test_an_approved_request_of_a_study_is_the_studys_choice(followed: tuple[Studio, str]) -> None:
    """A version that a person only let through goes when it leaves the frontier; one that a person chose stays."""
    studio, study = followed
    studio.promote(study, (0, 1))
    (entry,) = _waiting(studio)
    _approve(studio, entry)
    journal = studio.desk.journal
    assert journal.held_by_hand(studio.name) == frozenset()
    assert not any(stack[-1].by_hand for stack in journal.standing(studio.name).values())
    assert journal.needed().get(studio.name, set()) == set()
    assert (journal.moves(studio.name)[-1].action, journal.moves(studio.name)[-1].request) == ("approve", entry.id)
    chosen = studio.ask("1", "champion").entry
    assert chosen is not None
    approve(studio.client, journal, chosen.id)
    assert journal.held_by_hand(studio.name) == {"champion"}


def test_a_persons_request_and_a_studys_for_one_alias_wait_both(followed: tuple[Studio, str]) -> None:
    studio, study = followed
    mine = studio.ask("2", "smallest", force=True, reason="wanted").entry
    studio.promote(study, (0, 1))  # asks for smallest 3 → 2 among others
    theirs = next(entry for entry in _waiting(studio) if entry.action == "follow")
    assert "smallest" in theirs.after
    assert [entry.id for entry in _waiting(studio)] == [getattr(mine, "id", ""), theirs.id]
    other = studio.ask("1", "smallest", force=True, reason="no, this one").entry
    assert [entry.id for entry in _waiting(studio)] == [theirs.id, getattr(other, "id", "")]
    _approve(studio, theirs)
    with pytest.raises(ConfigurationError, match="now it is at 2"):
        approve(studio.client, studio.desk.journal, getattr(other, "id", ""))


def test_a_studys_request_takes_the_place_of_its_own_and_not_half_of_anothers(followed: tuple[Studio, str]) -> None:
    studio, study = followed
    studio.promote(study, (0, 1))
    first = _waiting(studio)[0]
    assert len(first.after) > 1
    journal = studio.desk.journal
    values = first.model_dump(include={"kind", "model", "action", "before", "after", "born"})
    journal.append(JournalEntry(id="same-study", study=study, **{**values, "after": {"smallest": "1"}}))
    assert [entry.id for entry in _waiting(studio)] == ["same-study"]
    journal.append(JournalEntry(id="whole", study="another", **values))
    assert [entry.id for entry in _waiting(studio)] == ["whole"]
    journal.append(JournalEntry(id="part", study="third", **{**values, "after": {"smallest": "1"}}))
    assert [entry.id for entry in _waiting(studio)] == ["whole", "part"]


def test_an_approval_tries_what_it_lets_through(followed: tuple[Studio, str]) -> None:
    studio, study = followed
    studio.promote(study, (0, 1))
    (entry,) = _waiting(studio)
    before = studio.aliases()
    studio.supervisor.broken = {"2"}
    desk = studio.desk
    with pytest.raises(AcfError, match=r"/2 failed its smoke test: failed: scripted; no alias moved"):
        try_and_approve(desk, entry.id, studio.bench)
    assert studio.aliases() == before
    assert _waiting(studio) == [entry]
    studio.supervisor.broken, studio.supervisor.asked = set(), []
    approved = try_and_approve(desk, entry.id, studio.bench)
    assert studio.supervisor.asked == [f"models:/{studio.name}/2"]
    assert [smoke.passed for smoke in approved.smokes] == [True]
    assert "3" not in studio.aliases().values()


def test_an_approval_that_moved_meanwhile_is_refused_after_the_test(followed: tuple[Studio, str]) -> None:
    studio, study = followed
    studio.promote(study, (0, 1))
    (entry,) = _waiting(studio)
    desk, run = studio.desk, studio.supervisor.run

    def run_slowly(*arguments: object, **named: object) -> object:
        rollback(desk.client, desk.journal, studio.name, alias="smallest")
        return run(*arguments, **named)  # type: ignore[arg-type]

    studio.supervisor.run = run_slowly  # type: ignore[method-assign, assignment]
    with pytest.raises(ConfigurationError, match="now it is at none"):
        try_and_approve(desk, entry.id, studio.bench)
    assert "smallest" not in studio.aliases()
