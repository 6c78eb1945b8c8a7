"""Alias moves: taken back, approved, and survived when the process is killed at any write."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from agentic_compression.errors import ConfigurationError, ModelError
from agentic_compression.records import PromotionPolicy, PromotionRequest
from agentic_compression.registry import (
    AliasJournal,
    Note,
    approve,
    holders,
    move_aliases,
    parse_version,
    recover,
    reject,
    rollback,
)
from agentic_compression.registry.mlflow_model import checkpoint_of
from agentic_compression.study.promotion import promote, require_promoted, verdict_on
from tests.unit.registry.desks import Studio

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.93, 5.0), 3: (0.70, 4.0)}
REGISTRY_WRITES = (
    "create_registered_model",
    "create_model_version",
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


@pytest.fixture
def promoted(studio: Studio) -> Studio:
    studio.promote(studio.study(POINTS), (0, 1, 2, 3))
    return studio


def _promote(studio: Studio, version: str, alias: str, **options: Any) -> Any:
    request = PromotionRequest(model=studio.name, version=version, alias=alias, policy=studio.policy, **options)
    desk = studio.desk
    return promote(desk, request, verdict_on(desk, request))


def test_a_planted_worse_challenger_is_refused_with_its_numbers(promoted: Studio) -> None:
    before = promoted.aliases()
    outcome = _promote(promoted, "4", "champion")
    assert outcome.status == "refused"
    assert promoted.aliases() == before
    # 24 of 100 items flipped one way: the exact binomial tail, twice
    assert outcome.verdict.comparison.p_value == pytest.approx(2 * 0.5**24)
    with pytest.raises(Exception, match=r"-0\.2400 against version 2, 95 % CI .* n=100, 24 answers lost and 0 gained"):
        require_promoted(outcome)


def test_force_promotes_it_and_the_journal_says_so(promoted: Studio) -> None:
    with pytest.raises(ValueError, match="needs a reason"):
        PromotionRequest(model="m", version="1", alias="champion", force=True)
    outcome = _promote(promoted, "4", "champion", force=True, reason="for a test")
    assert (outcome.status, promoted.aliases()["champion"]) == ("promoted", "4")
    entry = promoted.desk.journal.moves(promoted.name)[-1]
    assert entry.forced
    assert entry.why.startswith("for a test (forced: accuracy not worse: -0.2400")
    assert entry.who


def test_rollback_takes_back_move_after_move(promoted: Studio) -> None:
    first = promoted.aliases()
    _promote(promoted, "3", "champion")
    _promote(promoted, "1", "champion")
    desk = promoted.desk
    rollback(desk.client, desk.journal, promoted.name)
    assert promoted.aliases()["champion"] == "3"
    rollback(desk.client, desk.journal, promoted.name, alias="champion")
    assert promoted.aliases() == first
    rollback(desk.client, desk.journal, promoted.name)
    assert promoted.aliases() == {}
    with pytest.raises(ConfigurationError, match="no move"):
        rollback(desk.client, desk.journal, promoted.name)


def test_only_the_move_that_is_meant_is_taken_back(promoted: Studio) -> None:
    """A smoke test that fails late must not undo what somebody else has moved in the meantime."""
    desk = promoted.desk
    late = _promote(promoted, "3", "champion").entry
    _promote(promoted, "1", "champion")
    with pytest.raises(ConfigurationError, match="moved again since"):
        rollback(desk.client, desk.journal, promoted.name, alias="champion", undoing=late.id)
    assert promoted.aliases()["champion"] == "1"


def test_what_comes_back_by_itself_is_held_by_whose_choice_it_was(promoted: Studio) -> None:
    desk = promoted.desk
    for automatic, by_hand in ((False, True), (True, False)):
        moved = _promote(promoted, "3", "champion").entry
        rollback(desk.client, desk.journal, promoted.name, undoing=moved.id, automatic=automatic)
        assert promoted.aliases()["champion"] == "2"
        assert ("champion" in desk.journal.held_by_hand(promoted.name)) is by_hand
    _promote(promoted, "1", "champion")
    moved = _promote(promoted, "3", "champion").entry
    rollback(desk.client, desk.journal, promoted.name, undoing=moved.id, automatic=True)
    assert "champion" in desk.journal.held_by_hand(promoted.name)


def test_a_forced_move_does_not_end_at_a_checkpoint_deleted_meanwhile(promoted: Studio) -> None:
    desk = promoted.desk
    request = PromotionRequest(model=promoted.name, version="4", alias="champion", force=True, reason="wanted")
    verdict = verdict_on(desk, request)
    shutil.rmtree(checkpoint_of(Path(parse_version(desk.client, f"{promoted.name}/4").source)))
    with pytest.raises(ModelError):
        promote(desk, request, verdict)
    assert promoted.aliases()["champion"] == "2"


def test_a_registry_that_does_not_answer_leaves_the_move_to_be_completed(
    promoted: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = promoted.desk
    before = promoted.aliases()["champion"]
    with monkeypatch.context() as patch:
        broken = MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
        patch.setattr(desk.client, "set_registered_model_alias", Mock(side_effect=broken))
        with pytest.raises(MlflowException):
            _promote(promoted, "3", "champion")
    assert promoted.aliases()["champion"] == before
    recover(desk.client, desk.journal)
    assert promoted.aliases()["champion"] == "3"


def test_a_study_does_not_repeat_what_was_rolled_back_and_a_person_can(promoted: Studio) -> None:
    study = promoted.records(next(iter(promoted.history._records)))[0].study
    desk = promoted.desk
    smallest = promoted.aliases()["smallest"]
    rollback(desk.client, desk.journal, promoted.name, alias="smallest")
    promoted.promote(study, (0, 1, 2, 3))
    assert promoted.aliases()["smallest"] not in {smallest, ""}
    _promote(promoted, smallest, "smallest", force=True, reason="it was right after all")
    promoted.promote(study, (0, 1, 2, 3))
    assert promoted.aliases()["smallest"] == smallest


def test_a_rollback_to_a_checkpoint_that_is_gone_is_refused(promoted: Studio) -> None:
    import shutil

    _promote(promoted, "3", "champion")
    desk = promoted.desk
    shutil.rmtree(promoted.home / f"{next(iter(promoted.history._records))}-1")
    with pytest.raises(ModelError, match="acf rebuild"):
        rollback(desk.client, desk.journal, promoted.name)
    assert promoted.aliases()["champion"] == "3"


def test_an_alias_moved_behind_the_journal_is_not_rolled_back(promoted: Studio) -> None:
    _promote(promoted, "3", "champion")
    promoted.client.set_registered_model_alias(promoted.name, "champion", "1")
    desk = promoted.desk
    with pytest.raises(ConfigurationError, match="where the journal left it, got 1"):
        rollback(desk.client, desk.journal, promoted.name)


def test_a_request_waits_until_it_is_approved_or_rejected(promoted: Studio) -> None:
    before = promoted.aliases()
    request = _promote(promoted, "3", "champion", require_approval=True).entry
    assert promoted.aliases() == before
    assert _promote(promoted, "3", "champion", require_approval=True).status == "unchanged"
    desk = promoted.desk
    reject(desk.journal, request.id, why="no")
    with pytest.raises(ConfigurationError, match="no request"):
        approve(desk.client, desk.journal, request.id)
    again = _promote(promoted, "3", "champion", require_approval=True).entry
    approve(desk.client, desk.journal, again.id)
    assert promoted.aliases()["champion"] == "3"
    assert desk.journal.pending() == []


def test_an_approval_is_refused_when_the_alias_has_moved_since(promoted: Studio) -> None:
    request = _promote(promoted, "3", "champion", require_approval=True).entry
    _promote(promoted, "1", "champion")
    desk = promoted.desk
    with pytest.raises(ConfigurationError, match="now it is at 1"):
        approve(desk.client, desk.journal, request.id)
    assert promoted.aliases()["champion"] == "1"


def test_an_approval_is_refused_when_the_version_has_left_the_frontier_since(promoted: Studio) -> None:
    desk = promoted.desk
    request = PromotionRequest(model=promoted.name, version="3", alias="champion")
    verdict = verdict_on(desk, request)
    plain = _promote(promoted, "3", "champion", require_approval=True).entry
    forced = _promote(promoted, "3", "most-accurate", require_approval=True, force=True, reason="wanted").entry
    promoted.client.set_model_version_tag(promoted.name, "3", "acf.state", "superseded")
    before = promoted.aliases()
    with pytest.raises(ConfigurationError, match="it is superseded now"):
        approve(desk.client, desk.journal, plain.id)
    with pytest.raises(ConfigurationError, match="it is superseded now"):
        promote(desk, request, verdict)  # the gate looked before it left
    assert promoted.aliases() == before
    approve(desk.client, desk.journal, forced.id)
    assert promoted.aliases() == {**before, "most-accurate": "3"}


def test_the_policy_can_demand_approval_of_everything(promoted: Studio) -> None:
    promoted.policy = PromotionPolicy(require_approval=True)
    assert _promote(promoted, "3", "champion").status == "requested"


def test_what_a_rollback_needs_stays_on_disk(promoted: Studio) -> None:
    _promote(promoted, "3", "champion")
    assert promoted.desk.journal.needed()[promoted.name] == {"2"}


def _killed_child(studio: Studio, work: Callable[[], object], at: int, when: str) -> bool:
    """Run the work in a forked process that kills itself at a write; False when it ended before."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0, "the child failed by itself"
        return os.WIFSIGNALED(status)
    code = 1
    try:
        studio.client._get_registry_client().store.engine.dispose(close=False)  # the parent's connections
        count = 0

        def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal count
                count += 1
                if count == at and when == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                if count == at and when == "torn" and original is os_write:
                    os_write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                result = original(*arguments, **named)
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        os_write = os.write
        os.write = guarded(os_write)
        for name in REGISTRY_WRITES:
            setattr(studio.client, name, guarded(getattr(studio.client, name)))
        work()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_a_process_killed_at_any_write_leaves_the_old_aliases_or_the_new(promoted: Studio, when: str) -> None:
    wanted = {"champion": "3", "smallest": "1", "fastest": "", "greenest": "2"}
    old = promoted.aliases()
    new = {alias: version for alias, version in {**old, **wanted}.items() if version}
    outcomes, at = set(), 0
    while True:
        at += 1
        journal = AliasJournal(promoted.home / f"journal-{when}-{at}")
        for alias in set(new) | set(old):
            promoted.client.set_registered_model_alias(promoted.name, alias, old[alias])
        killed = _killed_child(
            promoted,
            lambda journal=journal: move_aliases(promoted.client, journal, promoted.name, wanted, Note("promote", "")),
            at,
            when,
        )
        if not killed:
            break
        fresh = AliasJournal(journal.folder)
        recover(promoted.client, fresh)
        outcomes.add(frozenset(holders(promoted.client, promoted.name).items()))
        assert fresh.unfinished() == []
        done = move_aliases(promoted.client, fresh, promoted.name, wanted, Note("promote", "again"))
        assert promoted.aliases() == new, done
        assert len(fresh.moves(promoted.name)) == 1
    assert at == 7  # intention, four aliases, its end, and no more
    assert outcomes <= {frozenset(old.items()), frozenset(new.items())}
    assert frozenset(new.items()) in outcomes
    if when != "after":
        assert frozenset(old.items()) in outcomes


def test_a_study_killed_at_any_write_ends_as_if_it_had_not_been(studio: Studio, tmp_path: Path) -> None:
    at, killed, ends = 0, True, set()
    points = {episode: POINTS[episode] for episode in (0, 1, 2)}
    while killed:
        at += 1
        studio.name = f"{studio.name.partition('--')[0]}--{at}"
        study = studio.study(points)
        killed = _killed_child(studio, lambda study=study: studio.promote(study, (0, 1, 2)), at, "after")
        studio.promote(study, (0, 1, 2))
        ends.add(frozenset(studio.aliases().items()))
        versions = studio.client.search_model_versions(f"name = '{studio.name}'")
        assert len(versions) == len(points)
        studio.client.delete_registered_model(studio.name)  # the next one's listings are shorter
    assert at > 12
    assert len(ends) == 1
