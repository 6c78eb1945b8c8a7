"""Promotions, requests, rollbacks, studies and kills in any order, against a plain model of what they do."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow import MlflowClient

from agentic_compression.errors import ConfigurationError, ModelError
from agentic_compression.registry import (
    AliasJournal,
    Note,
    approve,
    holders,
    list_versions,
    move_aliases,
    recover,
    reject,
    request_move,
    rollback,
)
from agentic_compression.registry.versions import KEY, STATE, STUDY, born
from tests.unit.registry.memory_registry import MemoryRegistry

ALIASES = ("champion", "smallest", "fastest")
aliases, picks = st.sampled_from(ALIASES), st.integers(0, 99)
WRITES = ("set_registered_model_alias", "delete_registered_model_alias")


class Killed(BaseException):
    """Stands for SIGKILL: nothing between the journal and MLflow catches it."""


class KilledClient:
    """MLflow's client in a process that dies at its n-th write."""

    def __init__(self, client: Any, at: int) -> None:
        self._client, self._left = client, at

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._client, name)
        if name not in WRITES:
            return original

        def call(*arguments: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise Killed
            return original(*arguments)

        return call


class Moves(RuleBasedStateMachine):
    """The registry on the one side; holders, stacks of moves and waiting requests on the other."""

    client: ClassVar[Any]

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.name = f"machine-{uuid4().hex[:8]}"
        self.make()

    def make(self) -> None:
        self.client.create_registered_model(self.name)
        self.journal = AliasJournal(self.folder / "journal", lambda name: born(self.client, name))
        self.states: dict[str, str] = {}
        self.sources: dict[str, Path] = {}
        self.holders: dict[str, str] = {}
        self.stacks: dict[str, list[tuple[int, str, str, bool]]] = {alias: [] for alias in ALIASES}
        self.by_hand: set[str] = set()
        self.waiting: dict[str, tuple[bool, dict[str, str], dict[str, str]]] = {}
        self.count = 0
        for _ in range(3):
            self.add_version()

    @rule()
    def add_version(self) -> None:
        folder = self.folder / uuid4().hex
        folder.mkdir()
        tags = {KEY: folder.name, STATE: "frontier", STUDY: "s"}
        made = self.client.create_model_version(self.name, source=folder.as_uri(), tags=tags)
        self.states[str(made.version)] = "frontier"
        self.sources[str(made.version)] = folder

    def version(self, pick: int) -> str:
        known = sorted(self.states)
        return known[pick % len(known)]

    def moved(self, after: dict[str, str], by_hand: bool) -> None:
        """What a move means: holders change, and each alias remembers where it came from."""
        changed = {alias: to for alias, to in after.items() if self.holders.get(alias, "") != to}
        self.count += 1
        for alias, to in changed.items():
            self.stacks[alias].append((self.count, self.holders.get(alias, ""), to, by_hand))
            self.holders[alias] = to
            (self.by_hand.add if by_hand else self.by_hand.discard)(alias)

    @rule(alias=aliases, pick=picks)
    def promote(self, alias: str, pick: int) -> None:
        move_aliases(self.client, self.journal, self.name, {alias: self.version(pick)}, Note("promote", ""))
        self.moved({alias: self.version(pick)}, by_hand=True)

    @rule(wanted=st.dictionaries(aliases, st.none() | picks, min_size=1))
    def follow(self, wanted: dict[str, int | None]) -> None:
        after = {alias: "" if pick is None else self.version(pick) for alias, pick in wanted.items()}
        move_aliases(self.client, self.journal, self.name, after, Note("follow", "", "s"))
        self.moved(after, by_hand=False)

    @rule(wanted=st.dictionaries(aliases, picks, min_size=1), at=st.integers(0, 3))
    def killed(self, wanted: dict[str, int], at: int) -> None:
        """The process dies at a write; the next one to look completes the move."""
        after = {alias: self.version(pick) for alias, pick in wanted.items()}
        dying: Any = KilledClient(self.client, at)
        changes = sum(self.holders.get(alias, "") != to for alias, to in after.items())
        try:
            move_aliases(dying, self.journal, self.name, after, Note("promote", ""))
            assert at >= changes
        except Killed:
            assert len(self.journal.unfinished()) == 1
        recover(self.client, self.journal)
        self.moved(after, by_hand=True)

    @rule(alias=aliases, pick=picks)
    def ask(self, alias: str, pick: int) -> None:
        self.request({alias: self.version(pick)}, follows=False)

    @rule(wanted=st.dictionaries(aliases, st.none() | picks, min_size=1))
    def study_asks(self, wanted: dict[str, int | None]) -> None:
        self.request(
            {alias: "" if pick is None else self.version(pick) for alias, pick in wanted.items()}, follows=True
        )

    def request(self, after: dict[str, str], *, follows: bool) -> None:
        note = Note("follow", "", "s") if follows else Note("promote", "")
        refused = self.journal.refused(self.name) if follows else frozenset()
        before = {alias: self.holders.get(alias, "") for alias in after}
        after = {
            alias: to
            for alias, to in after.items()
            if to != before[alias] and (alias, before[alias], to) not in refused
        }
        before = {alias: before[alias] for alias in after}
        made = request_move(self.client, self.journal, self.name, after, note)
        same = (follows, before, after) in self.waiting.values()
        assert (made is None) == (same or not after)
        for key, (theirs, _, aims) in list(self.waiting.items()):
            stale = follows and (follows, before, after) != self.waiting[key]
            if theirs == follows and (stale or (not same and aims.keys() & after.keys())):
                del self.waiting[key]
        if made is not None:
            self.waiting[made.id] = (follows, before, after)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def approve(self, pick: int) -> None:
        key = list(self.waiting)[pick % len(self.waiting)]
        follows, before, after = self.waiting[key]
        current = all(self.holders.get(alias, "") == held for alias, held in before.items())
        if current and all(self.states.get(to, "frontier" if not to else "") == "frontier" for to in after.values()):
            approve(self.client, self.journal, key)
            self.moved(after, by_hand=not follows)
            del self.waiting[key]
            return
        with pytest.raises((ConfigurationError, ModelError)):
            approve(self.client, self.journal, key)

    @precondition(lambda self: self.waiting)
    @rule(pick=picks)
    def reject(self, pick: int) -> None:
        key = list(self.waiting)[pick % len(self.waiting)]
        reject(self.journal, key)
        del self.waiting[key]

    @rule(alias=aliases)
    def take_back(self, alias: str) -> None:
        stack = self.stacks[alias]
        if not stack or (stack[-1][1] and stack[-1][1] not in self.states):
            with pytest.raises((ConfigurationError, ModelError)):
                rollback(self.client, self.journal, self.name, alias=alias)
            return
        rollback(self.client, self.journal, self.name, alias=alias)
        self.holders[alias] = stack.pop()[1]
        self.by_hand.add(alias)

    @rule(pick=picks)
    def supersede(self, pick: int) -> None:
        version = self.version(pick)
        self.client.set_model_version_tag(self.name, version, STATE, "superseded")
        self.states[version] = "superseded"

    @rule(pick=picks)
    def delete_what_nobody_needs(self, pick: int) -> None:
        """As retention does: never what an alias, a request or a rollback of a move by hand may need."""
        version, needed = self.version(pick), self.journal.needed().get(self.name, set())
        if version in self.holders.values() or version in needed or len(self.states) < 3:
            return
        self.client.delete_model_version(self.name, version)
        shutil.rmtree(self.sources.pop(version))
        del self.states[version]

    @rule()
    def delete_the_model(self) -> None:
        self.client.delete_registered_model(self.name)
        assert self.journal.pending() == []
        self.make()

    @invariant()
    def registry_and_model_agree(self) -> None:
        held = {alias: version for alias, version in self.holders.items() if version}
        assert holders(self.client, self.name) == held
        assert set(held.values()) <= {item.version for item in list_versions(self.client, self.name)}

    @invariant()
    def journal_and_model_agree(self) -> None:
        assert self.journal.unfinished() == []
        assert self.journal.held_by_hand(self.name) == self.by_hand
        assert [entry.id for entry in self.journal.pending(self.name)] == list(self.waiting)
        last = [stack[-1] for stack in self.stacks.values() if stack]
        needed = {before for _, before, _, by_hand in last if by_hand}
        for _, before, after in self.waiting.values():
            needed |= {*before.values(), *after.values()}
        assert self.journal.needed().get(self.name, set()) == needed - {""}

    def teardown(self) -> None:
        self.client.delete_registered_model(self.name)
        shutil.rmtree(self.folder)


@pytest.mark.parametrize(("real", "examples", "steps"), [(False, 80, 40), (True, 3, 15)], ids=["in memory", "MLflow"])
def test_moves_in_any_order_agree_with_a_plain_model(
    mlflow_store: tuple[MlflowClient, Path], real: bool, examples: int, steps: int
) -> None:
    Moves.client = mlflow_store[0] if real else MemoryRegistry()
    options = settings(max_examples=examples, stateful_step_count=steps, deadline=None)
    run_state_machine_as_test(Moves, settings=options)
