"""Moving aliases: as a whole, written down before, and taken back on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agentic_compression.errors import ConfigurationError, ModelError
from agentic_compression.records import JournalEntry, PromotionAction
from agentic_compression.registry.journal import AliasJournal, Change, moved, new_entry
from agentic_compression.registry.versions import born, holders, list_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "Note",
    "approve",
    "move_aliases",
    "recover",
    "reject",
    "request_move",
    "require_approvable",
    "require_standing",
    "require_usable",
    "rollback",
]


@dataclass(frozen=True)
class Note:
    """What the journal says of a move beside the aliases (see ``JournalEntry``)."""

    action: PromotionAction
    why: str
    study: str = ""
    forced: bool = False
    undoes: str = ""
    request: str = ""
    automatic: bool = False


def recover(client: MlflowClient, journal: AliasJournal) -> list[JournalEntry]:
    """Carry out moves that an earlier process intended and did not finish; returns them.

    Forward, not back: an intention was written down after it had passed the gate. Versions that were deleted
    meanwhile are passed over.
    """
    if not journal.unfinished():
        return []
    with journal.locked():
        open_moves = journal.unfinished()
        for entry in open_moves:
            _carry_out(client, entry)
            journal.append(_done(entry, recovered=True))
        return open_moves


def move_aliases(
    client: MlflowClient,
    journal: AliasJournal,
    model: str,
    wanted: Mapping[str, str],
    note: Note,
) -> JournalEntry | None:
    """Point aliases at versions, and remove those whose version is empty.

    A process killed at any moment leaves the old holders, or an intention that ``recover`` completes.

    Returns:
        The journal's entry; None when everything was so already.
    """
    with journal.locked():
        recover(client, journal)
        current = holders(client, model)
        after = moved(current, wanted)
        if not after:
            return None
        entry = journal.append(_entry(client, "intended", model, after, current, note))
        _carry_out(client, entry)
        journal.append(_done(entry))
        return entry


def rollback(
    client: MlflowClient,
    journal: AliasJournal,
    model: str,
    *,
    alias: str | None = None,
    why: str = "",
    undoing: str | None = None,
    automatic: bool = False,
) -> JournalEntry:
    """Take back the model's last move, or one alias's last.

    Args:
        client: of the registry.
        journal: of the moves.
        model: registered name.
        alias: of which the last move is meant; all of the model's last move when None.
        why: for the journal.
        undoing: the move that is meant, where only that one may be taken back.
        automatic: no person takes it back, so that the version before is held by whose choice it was.

    Raises:
        ConfigurationError: when there is nothing to take back, an alias moved without the journal since, or another
            move than the one that is meant was the last.
        ModelError: when what it goes back to is not there any more.
    """
    with journal.locked():
        recover(client, journal)
        changes = _last_changes(journal, model, alias)
        entry, current = changes[0].entry, holders(client, model)
        if undoing is not None and entry.id != undoing:
            raise ConfigurationError(
                f"{alias or 'an alias'} of {model} moved again since ({entry.id} after {undoing}), so nothing is taken "
                f"back{': ' + why if why else ''}; see 'acf registry history {model}'"
            )
        for change in changes:
            if current.get(change.alias, "") != entry.after[change.alias]:
                raise ConfigurationError(
                    f"{change.alias} of {model} must be at version {entry.after[change.alias] or 'none'}, where the "
                    f"journal left it, got {current.get(change.alias) or 'none'}; move it with 'acf registry promote'"
                )
            require_usable(client, model, change.before)
        back = {change.alias: change.before for change in changes}
        done = move_aliases(client, journal, model, back, Note("rollback", why, undoes=entry.id, automatic=automatic))
        assert done is not None
        return done


def request_move(
    client: MlflowClient,
    journal: AliasJournal,
    model: str,
    wanted: Mapping[str, str],
    note: Note,
) -> JournalEntry | None:
    """Write down a move that waits for an approval.

    A study's request is the whole of what its frontier asks for now: one that it made before is withdrawn when it asks
    for nothing any more, and what a person has refused it does not ask again.

    Returns:
        The request; None when nothing would move, or the same is asked already.
    """
    with journal.locked():
        recover(client, journal)
        current = holders(client, model)
        after, follows = moved(current, wanted), note.action == "follow"
        if follows:
            refused = journal.refused(model)
            after = {alias: to for alias, to in after.items() if (alias, current.get(alias, ""), to) not in refused}
        before = {alias: current.get(alias, "") for alias in after}
        alike = [item for item in journal.pending(model) if (item.action == "follow") == follows]
        asked = [item for item in alike if item.after == after and item.before == before]
        if after and not asked:
            return journal.append(_entry(client, "requested", model, after, current, note))
        for item in alike:
            if follows and item.study == note.study and item not in asked:
                _refuse(journal, item, f"{note.why} asks for it no more", study=note.study)
        return None


def approve(client: MlflowClient, journal: AliasJournal, request: str, *, why: str = "") -> JournalEntry:
    """Carry out a move that was asked for.

    Raises:
        ConfigurationError: when there is no such request, or an alias has moved since it was made.
        ModelError: when a version or its checkpoint is not there any more.
    """
    with journal.locked():
        entry = require_approvable(client, journal, request)
        note = Note("approve", why or entry.why, entry.study, entry.forced, request=entry.id)
        done = move_aliases(client, journal, entry.model, entry.after, note)
        assert done is not None
        return done


def require_approvable(client: MlflowClient, journal: AliasJournal, request: str) -> JournalEntry:
    """The request, if it could be carried out as things are.

    Raises:
        ConfigurationError: when there is no such request, or an alias has moved since it was made.
        ModelError: when a version or its checkpoint is not there any more.
    """
    with journal.locked():
        recover(client, journal)
        entry = _request(journal, request)
        current = holders(client, entry.model)
        for alias, before in entry.before.items():
            if current.get(alias, "") != before:
                raise ConfigurationError(
                    f"request {request} was made when {alias} was at version {before or 'none'}, now it is at "
                    f"{current.get(alias) or 'none'}; ask again, or reject it with --reject"
                )
        for version in entry.after.values():
            require_usable(client, entry.model, version)
            if not entry.forced:
                require_standing(client, entry.model, version)
        return entry


def reject(journal: AliasJournal, request: str, *, why: str = "") -> JournalEntry:
    """Refuse a move that was asked for.

    Raises:
        ConfigurationError: when there is no such request.
    """
    with journal.locked():
        return _refuse(journal, _request(journal, request), why)


def require_usable(client: MlflowClient, model: str, version: str) -> None:
    """That an alias can point there; the empty version always can.

    Raises:
        ModelError: when the version or its checkpoint is gone.
    """
    if not version:
        return
    found = next((item for item in list_versions(client, model) if item.version == version), None)
    if found is None:
        raise ModelError(f"{model}/{version} is not in the registry any more; see: acf registry list {model}")
    if not Path(found.source).is_dir():
        raise ModelError(
            f"the checkpoint of {model}/{version} is gone; make it again: acf rebuild {found.study} {found.episode}"
        )


def require_standing(client: MlflowClient, model: str, version: str) -> None:
    """That a version is still on its study's frontier; the empty version always is.

    Raises:
        ConfigurationError: when it was superseded, withheld or removed since the gate let it through.
    """
    state = next((item.state for item in list_versions(client, model) if item.version == version), "frontier")
    if version and state != "frontier":
        raise ConfigurationError(
            f"{model}/{version} must be on the frontier, as it was when the gate let it through; it is {state} now; "
            "see: acf registry list"
        )


def _last_changes(journal: AliasJournal, model: str, alias: str | None) -> list[Change]:
    stacks = {name: stack for name, stack in journal.standing(model).items() if stack and alias in {None, name}}
    if not stacks:
        of = f"alias {alias} of {model}" if alias else model
        raise ConfigurationError(f"no move of {of} is left to take back; see: acf registry history {model}")
    order = {entry.id: place for place, entry in enumerate(journal.moves(model))}
    last = max((stack[-1].entry.id for stack in stacks.values()), key=lambda entry: order[entry])
    return [stack[-1] for _, stack in sorted(stacks.items()) if stack[-1].entry.id == last]


def _request(journal: AliasJournal, request: str) -> JournalEntry:
    found = next((entry for entry in journal.pending() if entry.id == request), None)
    if found is None:
        waiting = ", ".join(entry.id for entry in journal.pending()) or "none"
        raise ConfigurationError(f"no request {request!r} waits for approval; waiting: {waiting}")
    return found


def _carry_out(client: MlflowClient, entry: JournalEntry) -> None:
    from mlflow.exceptions import MlflowException

    try:
        current = holders(client, entry.model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # such as a database that is locked: it is tried again
            raise
        return  # the model was removed after the intention
    known = {item.version for item in list_versions(client, entry.model)}
    for alias, version in moved(current, entry.after).items():
        if not version:
            client.delete_registered_model_alias(entry.model, alias)
        elif version in known:
            client.set_registered_model_alias(entry.model, alias, version)


def _entry(
    client: MlflowClient, kind: str, model: str, after: Mapping[str, str], current: Mapping[str, str], note: Note
) -> JournalEntry:
    before = {alias: current.get(alias, "") for alias in after}
    made = born(client, model) or 0
    return new_entry(kind=kind, model=model, before=before, after=dict(after), born=made, **asdict(note))


def _refuse(journal: AliasJournal, asked: JournalEntry, why: str, study: str = "") -> JournalEntry:
    """Write down that a request is over; with the study, if it was that which took it back."""
    values = asked.model_dump(include={"model", "action", "before", "after", "born"})
    return journal.append(new_entry(kind="rejected", request=asked.id, why=why, study=study, **values))


def _done(entry: JournalEntry, *, recovered: bool = False) -> JournalEntry:
    values = entry.model_dump(include={"id", "model", "action", "born"})
    return new_entry(kind="done", recovered=recovered, **values)
