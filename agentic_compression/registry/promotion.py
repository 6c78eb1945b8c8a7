"""Makes the registry follow a frontier: versions for its members, and aliases for those that pass the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agentic_compression.records import (
    Comparison,
    EpisodeRecord,
    FrontierDocument,
    GateVerdict,
    PromotionPolicy,
    Solution,
    VersionEvidence,
)
from agentic_compression.registry.aliases import ranked
from agentic_compression.registry.gate import judge
from agentic_compression.registry.journal import AliasJournal
from agentic_compression.registry.mlflow_model import DEFAULT_EXAMPLE, drop_unfinished
from agentic_compression.registry.moves import Note, move_aliases, recover, request_move
from agentic_compression.registry.versions import (
    EPISODE,
    EXAMPLE,
    KEY,
    REASON,
    STATE,
    STUDY,
    RegisteredVersion,
    born,
    ensure_model,
    holders,
    list_versions,
    register_member,
    set_tags,
    versions_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Evidence", "RegistryDesk", "consider", "promote_frontier"]

_TAG_LIMIT = 1500


class Evidence(Protocol):
    """What the registry has to ask of the studies."""

    def of_version(self, version: RegisteredVersion) -> VersionEvidence:
        """What is known of a version."""

    def compare(
        self, challenger: VersionEvidence, incumbent: VersionEvidence
    ) -> tuple[Comparison | str, tuple[str, ...]]:
        """The two on the items in common, or why not; and how their environments differ."""

    def details(self, record: EpisodeRecord) -> dict[str, str]:
        """Tags of a new version: how it compares with its baseline, and where it was measured."""

    def example(self, study: str) -> tuple[str, str]:
        """A prompt of the study's dataset; or the fixed one, and why. Never raises."""


@dataclass(frozen=True)
class RegistryDesk:
    """The registry with all that a promotion needs.

    Attributes:
        client: of MLflow's registry.
        journal: of alias moves.
        policy: who may hold an alias.
        models: folder of the thin MLflow models.
        evidence: what the studies know.
    """

    client: MlflowClient
    journal: AliasJournal
    policy: PromotionPolicy
    models: Path
    evidence: Evidence


def consider(
    desk: RegistryDesk,
    alias: str,
    challenger: RegisteredVersion,
    incumbent: RegisteredVersion | None,
    *,
    stands: bool = True,
) -> GateVerdict:
    """Ask the gate whether the challenger may take the alias from the incumbent, which may keep it if it ``stands``."""
    ours = desk.evidence.of_version(challenger)
    if incumbent is None or incumbent.version == challenger.version:
        return judge(desk.policy, alias, ours)
    theirs = desk.evidence.of_version(incumbent)
    comparison, differences = desk.evidence.compare(ours, theirs)
    return judge(desk.policy, alias, ours, theirs, comparison, differences, stands=stands)


def promote_frontier(
    desk: RegistryDesk,
    name: str,
    document: FrontierDocument,
    records: Sequence[EpisodeRecord],
    withheld: Mapping[int, str] | None = None,
) -> FrontierDocument:
    """Make the registry show this frontier: versions for its members, aliases for those that pass the gate.

    Versions of this study that are no longer members are tagged ``superseded`` and lose their aliases to the best
    member that is not significantly less accurate. Where somebody put an alias there by hand, a challenger has to pass
    the whole gate.

    Args:
        desk: the registry.
        name: the registered model.
        document: the frontier.
        records: of its members, and any others.
        withheld: members that did not pass the checks of the results, by episode, with the reason. They get no
            version; one that they have from before loses its aliases and is tagged ``withheld`` with the reason.

    Returns:
        The same document with every solution's ``registry_version``, or the reason there is none, filled in.
    """
    by_episode = {record.episode: record for record in records}
    reasons = {**_gone(document, by_episode), **(withheld or {})}
    if not document.solutions and born(desk.client, name) is None:
        return document  # there is nothing to register, and nothing to take an alias from
    with desk.journal.locked():
        recover(desk.client, desk.journal)
        drop_unfinished(desk.models)
        ensure_model(desk.client, name, document.study)
        members = _register(desk, name, document, by_episode, reasons)
        _settle_states(desk, name, document.study, members, reasons)
        _follow(desk, name, [item for item in document.solutions if item.episode in members], members, document.study)
    solutions = tuple(
        item.model_copy(
            update={"registry_version": members.get(item.episode), "withheld": reasons.get(item.episode, "")}
        )
        for item in document.solutions
    )
    return document.model_copy(update={"solutions": solutions})


def _gone(document: FrontierDocument, by_episode: Mapping[int, EpisodeRecord]) -> dict[int, str]:
    """Members whose folder is not there: an alias must not point at nothing."""
    checkpoints = {item.episode: by_episode[item.episode].checkpoint for item in document.solutions}
    return {
        episode: f"its checkpoint {checkpoint.path} is gone; make it again: acf rebuild {document.study} {episode}"
        for episode, checkpoint in checkpoints.items()
        if checkpoint is not None and not Path(checkpoint.path).is_dir()
    }


def _register(
    desk: RegistryDesk,
    name: str,
    document: FrontierDocument,
    by_episode: Mapping[int, EpisodeRecord],
    reasons: Mapping[int, str],
) -> dict[int, str]:
    """Versions of the members by episode."""
    known = {(version.tags.get(KEY, ""), version.source): version for version in versions_of(desk.client, name)}
    tagged = {version.tags.get(KEY) for version in known.values() if "acf.code_version" in version.tags}
    example, fixed = "", ""
    members: dict[int, str] = {}
    for solution in document.solutions:
        record = by_episode[solution.episode]
        if record.checkpoint is None or record.episode in reasons:
            continue
        details: dict[str, str] = {}
        if f"{record.study}/{record.episode}/{record.checkpoint.digest}" not in tagged:
            if not example:
                example, fixed = desk.evidence.example(record.study)
            details = {**desk.evidence.details(record), **({EXAMPLE: fixed[:_TAG_LIMIT]} if fixed else {})}
        place = (desk.models, example or DEFAULT_EXAMPLE)
        members[solution.episode] = register_member(desk.client, name, solution, record, known, place, details)
    return members


def _settle_states(
    desk: RegistryDesk, name: str, study: str, members: Mapping[int, str], reasons: Mapping[int, str]
) -> None:
    for version in versions_of(desk.client, name):
        ours = version.tags.get(STUDY) == study and version.tags.get(STATE) != "removed"
        if ours and str(version.version) not in members.values():
            reason = reasons.get(int(version.tags.get(EPISODE, "-1")))
            state = {STATE: "withheld", REASON: reason[:_TAG_LIMIT]} if reason else {STATE: "superseded"}
            set_tags(desk.client, version, state)


def _follow(
    desk: RegistryDesk, name: str, solutions: Sequence[Solution], members: Mapping[int, str], study: str
) -> None:
    """Move the aliases that the gate lets move, all in one entry of the journal."""
    versions = {version.version: version for version in list_versions(desk.client, name)}
    current, by_hand = holders(desk.client, name), desk.journal.held_by_hand(name)
    taken_back = desk.journal.rejected_by_rollback(name)
    wanted, refusals = dict[str, str](), dict[tuple[str, str], str]()
    for alias, rule in desk.policy.aliases.items():
        holder = versions.get(current.get(alias, ""))
        claims = holder is not None and _has_claim(holder, alias in by_hand, set(members.values()), study, solutions)
        order = [members[item.episode] for item in ranked(solutions, rule)]
        order = [version for version in order if (alias, version) not in taken_back]
        chosen, refused = _first_that_passes(desk, alias, [versions[number] for number in order], holder, claims)
        refusals |= {(version, alias): reason for version, reason in refused.items()}
        if chosen is not None:
            wanted[alias] = chosen
        elif not claims and not (holder is not None and (_serves_another(holder, study) or (order and _left(holder)))):
            wanted[alias] = ""
    _note_refusals(desk, name, set(members.values()), refusals)
    _move(desk, name, wanted, study)


def _has_claim(
    holder: RegisteredVersion, by_hand: bool, members: set[str], study: str, solutions: Sequence[Solution]
) -> bool:
    """Whether a version may keep its alias until a challenger passes the gate."""
    if not Path(holder.source).is_dir():
        return False
    if by_hand:
        return True
    if holder.study != study:
        return holder.state == "frontier"
    return holder.version in members and any(
        item.meets_constraints for item in solutions if str(item.episode) == holder.episode
    )


def _left(holder: RegisteredVersion) -> bool:
    """It lost its claim to a later episode, not to a fault of its own."""
    return holder.state == "superseded" and Path(holder.source).is_dir()


def _serves_another(holder: RegisteredVersion, study: str) -> bool:
    """It is of another study: only what passes the gate replaces it, even where that study was removed."""
    return holder.study != study and Path(holder.source).is_dir()


def _first_that_passes(
    desk: RegistryDesk, alias: str, order: Sequence[RegisteredVersion], holder: RegisteredVersion | None, claims: bool
) -> tuple[str | None, dict[str, str]]:
    """The version that the alias goes to, or None where it stays; and why better ones were refused."""
    refused: dict[str, str] = {}
    for version in order:
        if holder is not None and claims and version.version == holder.version:
            return None, refused
        old = holder if holder is not None and (claims or _left(holder)) else None
        verdict = consider(desk, alias, version, old, stands=claims)
        if verdict.passed:
            return version.version, refused
        refused[version.version] = verdict.failures
    return None, refused


def _note_refusals(desk: RegistryDesk, name: str, members: set[str], refusals: Mapping[tuple[str, str], str]) -> None:
    """``acf.refused.<alias>`` says what the gate found; it is emptied when that is over."""
    for version in versions_of(desk.client, name):
        number = str(version.version)
        if number not in members:
            continue
        now = {f"acf.refused.{alias}": text[:_TAG_LIMIT] for (of, alias), text in refusals.items() if of == number}
        over = {key: "" for key, value in version.tags.items() if key.startswith("acf.refused.") and value}
        set_tags(desk.client, version, {**over, **now})


def _move(desk: RegistryDesk, name: str, wanted: Mapping[str, str], study: str) -> None:
    """Make the moves, or ask for them; where the policy wants an approval, taking an alias away needs one as well."""
    note = Note("follow", f"the frontier of {study}", study)
    if not desk.policy.require_approval:
        move_aliases(desk.client, desk.journal, name, wanted, note)
        wanted = {}  # what it asked for under another policy is over
    request_move(desk.client, desk.journal, name, wanted, note)
