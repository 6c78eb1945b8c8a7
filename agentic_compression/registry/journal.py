"""The journal of alias moves: what was intended, by whom and why, and whether it was carried out.

MLflow has no transaction over several aliases. So a move is first written down as a whole, then carried out alias by
alias, then marked as done. Whoever opens the registry next completes a move that was cut short. The file only grows;
a last line that a killed process left half written is not read, and is overwritten by the next one.

Lines outlive a registered model that is deleted. Each says when its model was made: MLflow numbers the versions of one
that is made again under the same name from 1, so what was said of the former one holds for it no more.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import ValidationError

from agentic_compression.errors import AcfError
from agentic_compression.records import JournalEntry
from agentic_compression.registry.versions import born
from agentic_compression.settings import Settings

if TYPE_CHECKING:
    from filelock import FileLock
    from mlflow import MlflowClient

__all__ = ["AliasJournal", "Change", "journal_of", "moved", "new_entry", "operator"]

_FILE = "journal.jsonl"


def operator() -> str:
    """``user@host`` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def new_entry(**values: Any) -> JournalEntry:
    """An entry with an id of its own, made here and now."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return JournalEntry.model_validate({"id": uuid4().hex[:12], "who": operator(), "at": at, **values})


@dataclass(frozen=True)
class Change:
    """One alias's last move that was not taken back."""

    alias: str
    entry: JournalEntry
    by_hand: bool
    """A person chose the version; it did not follow from the frontier."""

    @property
    def before(self) -> str:
        """The version that held the alias before; empty: none."""
        return self.entry.before.get(self.alias, "")


def journal_of(settings: Settings, client: MlflowClient | None = None) -> AliasJournal:
    """The journal of a state root, ``data/registry``; with its registry, it knows which models are there still."""
    made = partial(born, client) if client is not None else None
    return AliasJournal(settings.root / "data" / "registry", made)


class AliasJournal:
    """The journal in one folder, with the lock that every move takes.

    Args:
        folder: of the file and the lock.
        made: when a registered model was made (see ``versions.born``). Entries of former models of that name are then
            history: ``entries`` has them, what follows from entries does not. Without it every entry counts.
    """

    def __init__(self, folder: Path, made: Callable[[str], int | None] | None = None) -> None:
        self.folder = folder
        self._path = folder / _FILE
        self._made = made

    @cached_property
    def _lock(self) -> FileLock:
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock", timeout=120)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time moves aliases. May be nested; the kernel releases the lock of a process that dies."""
        with self._lock:
            yield

    def entries(self, model: str | None = None) -> list[JournalEntry]:
        """All entries, oldest first; those of one model where it is given.

        Raises:
            AcfError: when a line other than an unfinished last one cannot be read.
        """
        found = []
        for number, line in enumerate(self._lines(), start=1):
            try:
                entry = JournalEntry.model_validate_json(line)
            except ValidationError as error:
                raise AcfError(
                    f"{self._path}:{number} must be a journal entry, got {line[:80]!r}; mend or remove that line"
                ) from error
            if model in {None, entry.model}:
                found.append(entry)
        return found

    def valid(self, entries: Sequence[JournalEntry]) -> list[JournalEntry]:
        """Those that speak of a registered model that is there still."""
        if self._made is None:
            return list(entries)
        made = {model: self._made(model) for model in {entry.model for entry in entries}}
        return [entry for entry in entries if entry.is_of(made[entry.model])]

    def append(self, entry: JournalEntry) -> JournalEntry:
        """Add a line and wait until the disk has it; the caller holds the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = self._whole_bytes()
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(handle, whole)
            os.lseek(handle, 0, os.SEEK_END)
            data = entry.model_dump_json(exclude_defaults=True).encode() + b"\n"
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        return entry

    def unfinished(self) -> list[JournalEntry]:
        """Moves that were intended and not marked as done, oldest first."""
        entries = self.entries()
        ended = {entry.id for entry in entries if entry.kind == "done"}
        return self.valid([entry for entry in entries if entry.kind == "intended" and entry.id not in ended])

    def moves(self, model: str) -> list[JournalEntry]:
        """The model's moves that were carried out, oldest first."""
        return _carried_out(self.valid(self.entries(model)))

    def standing(self, model: str) -> dict[str, list[Change]]:
        """By alias, its moves that were not taken back, oldest first."""
        entries = self.valid(self.entries(model))
        chosen, stacks = _by_hand(entries), dict[str, list[Change]]()
        for entry in _carried_out(entries):
            for alias in entry.after:
                stack = stacks.setdefault(alias, [])
                if entry.action == "rollback":
                    if stack and stack[-1].entry.id == entry.undoes:
                        stack.pop()
                else:
                    stack.append(Change(alias, entry, entry.id in chosen))
        return stacks

    def held_by_hand(self, model: str) -> frozenset[str]:
        """Aliases whose last move a person chose; where that was taken back automatically, the move that stands."""
        entries = self.valid(self.entries(model))
        chosen, stacks = _by_hand(entries), self.standing(model)
        last = {alias: entry for entry in _carried_out(entries) for alias in entry.after}
        return frozenset(
            alias
            for alias, move in last.items()
            if (any(change.by_hand for change in stacks[alias][-1:]) if move.automatic else move.id in chosen)
        )

    def rejected_by_rollback(self, model: str) -> frozenset[tuple[str, str]]:
        """Aliases with versions that somebody took back, and that nobody has promoted again since."""
        found: set[tuple[str, str]] = set()
        for entry in self.moves(model):
            if entry.action == "rollback":
                found |= {(alias, version) for alias, version in entry.before.items() if version}
            elif entry.action in {"promote", "approve"}:
                found -= set(entry.after.items())
        return frozenset(found)

    def refused(self, model: str) -> frozenset[tuple[str, str, str]]:
        """Alias, holder and version of the moves that studies asked for and a person refused."""
        entries = self.valid(self.entries(model))
        found = [entry for entry in entries if entry.kind == "rejected" and not entry.withdrawn]
        return frozenset(
            (alias, entry.before.get(alias, ""), version)
            for entry in found
            if entry.action == "follow"
            for alias, version in entry.after.items()
        )

    def pending(self, model: str | None = None) -> list[JournalEntry]:
        """Requests that wait for an approval, oldest first.

        A person's request takes the place of a person's for the same alias, and a study's that of the same study, or of
        another whose aliases it all has. A study's and a person's for the same alias wait both.
        """
        waiting: dict[str, JournalEntry] = {}
        for entry in self.valid(self.entries(model)):
            if entry.kind == "requested":
                waiting = {key: older for key, older in waiting.items() if not _replaces(entry, older)}
                waiting[entry.id] = entry
            elif entry.kind == "rejected" or (entry.kind == "intended" and entry.request):
                waiting.pop(entry.request or entry.id, None)
        return list(waiting.values())

    def needed(self) -> dict[str, set[str]]:
        """By model, versions whose checkpoints must stay: of unfinished moves, open requests, and what a move by hand
        left, so that it can be taken back."""
        found: dict[str, set[str]] = {}
        entries = self.entries()
        for entry in (*self.unfinished(), *self.pending()):
            found.setdefault(entry.model, set()).update((*entry.before.values(), *entry.after.values()))
        for model in {entry.model for entry in entries if entry.kind == "intended"}:
            last = (stack[-1] for stack in self.standing(model).values() if stack)
            found.setdefault(model, set()).update(change.before for change in last if change.by_hand)
        return {model: versions - {""} for model, versions in found.items()}

    def _lines(self) -> list[str]:
        if not self._path.is_file():
            return []
        data = self._path.read_bytes()
        return [line for line in data[: data.rfind(b"\n") + 1].decode("utf-8").split("\n") if line]

    def _whole_bytes(self) -> int:
        """Length up to the last complete line."""
        if not self._path.is_file():
            return 0
        return self._path.read_bytes().rfind(b"\n") + 1


def moved(current: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, str]:
    """Of the wanted holders, those that differ from the current ones."""
    return {alias: version for alias, version in wanted.items() if current.get(alias, "") != version}


def _carried_out(entries: Sequence[JournalEntry]) -> list[JournalEntry]:
    ended = {entry.id: entry for entry in entries if entry.kind == "done"}
    return [
        entry.model_copy(update={"recovered": ended[entry.id].recovered})
        for entry in entries
        if entry.kind == "intended" and entry.id in ended
    ]


def _by_hand(entries: Sequence[JournalEntry]) -> frozenset[str]:
    """Moves that a person chose: neither made by a study, nor asked for by one and let through by a person."""
    asked = {entry.id: entry.action for entry in entries if entry.kind == "requested"}
    moves = (entry for entry in entries if entry.kind == "intended")
    return frozenset(entry.id for entry in moves if asked.get(entry.request, entry.action) != "follow")


def _replaces(newer: JournalEntry, older: JournalEntry) -> bool:
    """Whether a request takes an earlier one's place."""
    if newer.model != older.model or (newer.action == "follow") != (older.action == "follow"):
        return False
    if newer.action == "follow":
        return newer.study == older.study or set(older.after) <= set(newer.after)
    return bool(set(older.after) & set(newer.after))
