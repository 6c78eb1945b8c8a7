"""Promotion by hand or by pipeline: measure both where asked, ask the gate, move the alias, try what it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentic_compression.errors import AcfError, ConfigurationError
from agentic_compression.records import (
    BASELINE,
    Contenders,
    GateVerdict,
    JournalEntry,
    Promoted,
    PromotionPolicy,
    PromotionRequest,
    Record,
    SmokeResult,
    StudyConfig,
    VersionEvidence,
)
from agentic_compression.registry import (
    Note,
    RegisteredVersion,
    RegistryDesk,
    consider,
    holders,
    journal_of,
    list_versions,
    move_aliases,
    parse_version,
    policy_file,
    read_policy,
    recover,
    registered_name,
    request_move,
    require_usable,
    rollback,
)
from agentic_compression.registry.gate import judge
from agentic_compression.registry.moves import approve as carry_out
from agentic_compression.registry.moves import require_approvable, require_standing
from agentic_compression.registry.smoke import SmokeRequest
from agentic_compression.study.naming import short_name
from agentic_compression.study.version_evidence import StudyEvidence
from agentic_compression.study.workbench import Workbench

__all__ = [
    "Approved",
    "approve",
    "contenders_of",
    "measure_contenders",
    "model_of",
    "open_desk",
    "promote",
    "registry_facts",
    "require_promoted",
    "settled",
    "smoke_test",
    "study_of",
    "verdict_on",
    "verdict_on_measured",
]

SMOKE = "agentic_compression.registry.smoke:smoke"
_SMOKE_TIMEOUT_S = 600.0


class Approved(Record):
    """What became of an approval."""

    entry: JournalEntry
    smokes: tuple[SmokeResult, ...]


def open_desk(
    bench: Workbench, config: StudyConfig | None = None, policy: PromotionPolicy | None = None
) -> RegistryDesk:
    """The registry of this state root, with moves that an earlier process left unfinished carried out.

    Args:
        bench: with a registry.
        config: of the study that is being recorded.
        policy: the state root's own, or the one that ships, when None.
    """
    if bench.registry is None:
        raise ConfigurationError("promotion needs a model registry, and this run has none")
    root = bench.settings.root
    desk = RegistryDesk(
        client=bench.registry,
        journal=journal_of(bench.settings, bench.registry),
        policy=policy or read_policy(policy_file(root)),
        models=bench.settings.artifacts / "models",
        evidence=StudyEvidence(bench, config),
    )
    recover(desk.client, desk.journal)
    return desk


def model_of(config: StudyConfig) -> str:
    """The registered model that a study's frontier goes to."""
    return registered_name(short_name(config.model), short_name(config.dataset))


def study_of(request: PromotionRequest, bench: Workbench) -> str:
    """The study that made the version.

    Raises:
        ModelError: when there is no such version.
    """
    return parse_version(open_desk(bench).client, f"{request.model}/{request.version}").study


def registry_facts(model: str, bench: Workbench) -> dict[str, Any]:
    """What the registry holds under a name, for other books: strategies, states and aliases by version number."""
    versions = list_versions(bench.registry, model) if bench.registry is not None else []
    return {
        "mlflow_model": model,
        "versions": {item.version: f"{item.strategy} ({item.state})" for item in versions},
        "aliases": {alias: item.version for item in versions for alias in item.aliases},
    }


def contenders_of(desk: RegistryDesk, request: PromotionRequest) -> tuple[RegisteredVersion, RegisteredVersion | None]:
    """The version that is to take the alias, and the one that holds it.

    Raises:
        ConfigurationError: when the policy has no such alias.
        ModelError: when there is no such version, or its checkpoint is gone.
    """
    if request.alias not in desk.policy.aliases:
        allowed = ", ".join(desk.policy.aliases)
        raise ConfigurationError(f"the policy's aliases are {allowed}, got {request.alias!r}")
    challenger = parse_version(desk.client, f"{request.model}/{request.version}")
    require_usable(desk.client, request.model, request.version)
    number = holders(desk.client, request.model).get(request.alias)
    others = {item.version: item for item in list_versions(desk.client, request.model)}
    return challenger, others.get(number or "")


def verdict_on(desk: RegistryDesk, request: PromotionRequest) -> GateVerdict:
    """What the gate says from what was recorded; nothing is measured."""
    challenger, incumbent = contenders_of(desk, request)
    return consider(desk, request.alias, challenger, incumbent)


def measure_contenders(desk: RegistryDesk, request: PromotionRequest, bench: Workbench) -> Contenders:
    """Measure both here and now, on the report items of the challenger's study.

    An evaluation that was made before under the same conditions on this machine is read, not repeated.

    Raises:
        AcfError: when the challenger cannot be measured, or its study is gone.
    """
    challenger, incumbent = contenders_of(desk, request)
    measured = _measured(desk, challenger, challenger, bench)
    if measured.missing:
        raise AcfError(f"{challenger.name} could not be measured: {measured.missing}")
    if incumbent is None or incumbent.version == challenger.version:
        return Contenders(challenger=measured)
    return Contenders(challenger=measured, incumbent=_measured(desk, incumbent, challenger, bench))


def verdict_on_measured(desk: RegistryDesk, request: PromotionRequest, measured: Contenders) -> GateVerdict:
    """What the gate says of two that were just measured."""
    if measured.incumbent is None:
        return judge(desk.policy, request.alias, measured.challenger)
    alike = measured.incumbent.model_copy(update={"study": measured.challenger.study})  # asked the same items
    comparison, differences = desk.evidence.compare(measured.challenger, alike)
    return judge(desk.policy, request.alias, measured.challenger, measured.incumbent, comparison, differences)


def settled(desk: RegistryDesk, request: PromotionRequest) -> Promoted | None:
    """What measuring could not change: the version holds the alias already, or the same request waits for approval.

    Returns:
        An unchanged promotion, with the request that waits as its entry; None when there is something to decide.

    Raises:
        ConfigurationError: when the policy has no such alias.
        ModelError: when there is no such version, or its checkpoint is gone.
    """
    _, incumbent = contenders_of(desk, request)
    held = incumbent is not None and incumbent.version == request.version
    waits = _waiting(desk, request) if _by_request(desk, request) and not held else None
    if not held and waits is None:
        return None
    return Promoted(status="unchanged", verdict=verdict_on(desk, request), entry=waits)


def promote(
    desk: RegistryDesk, request: PromotionRequest, verdict: GateVerdict, bench: Workbench | None = None
) -> Promoted:
    """Move the alias, or write down the request for it, if the gate says so or the request is forced.

    Args:
        desk: of the registry.
        request: which version, to which alias.
        verdict: the gate's.
        bench: asks the version a question through MLflow before the alias moves: a wrong answer keeps it where it is,
            or is written down beside the reason of a forced request. None: whoever calls tries it, or nobody does.

    Raises:
        AcfError: when the alias or the version changed since the gate looked at them.
    """
    if not verdict.passed and not request.force:
        return Promoted(status="refused", verdict=verdict)
    by_request = _by_request(desk, request)
    smoke = None
    seen = holders(desk.client, request.model).get(request.alias)
    if bench is not None and not by_request and seen != request.version:
        smoke = _smoke(request.model, request.version, bench)
        if not smoke.passed and not request.force:
            return Promoted(status="refused", verdict=verdict, smoke=smoke)
    note = _note(desk, request, verdict, smoke)
    wanted = {request.alias: request.version}
    expected = verdict.incumbent if verdict.passed else seen  # a forced request may be older than the gate's look
    with desk.journal.locked():
        current = holders(desk.client, request.model).get(request.alias)
        if current not in {expected, request.version}:
            whose = "the gate compared with" if verdict.passed else "when the version was tried it was at"
            raise AcfError(
                f"{request.alias} of {request.model} moved to version {current or 'none'} meanwhile, {whose} "
                f"{expected or 'none'}; ask again"
            )
        require_usable(desk.client, request.model, request.version)  # measuring and trying took their time
        if verdict.passed:
            require_standing(desk.client, request.model, request.version)
        if by_request:
            asked = request_move(desk.client, desk.journal, request.model, wanted, note)
            entry = asked or _waiting(desk, request)
            return Promoted(status="requested" if asked else "unchanged", verdict=verdict, entry=entry)
        moved = move_aliases(desk.client, desk.journal, request.model, wanted, note)
    return Promoted(status="promoted" if moved else "unchanged", verdict=verdict, entry=moved, smoke=smoke)


def _by_request(desk: RegistryDesk, request: PromotionRequest) -> bool:
    return request.require_approval or desk.policy.require_approval


def _waiting(desk: RegistryDesk, request: PromotionRequest) -> JournalEntry | None:
    """A person's request for the same move from where the alias is now."""
    holder = holders(desk.client, request.model).get(request.alias, "")
    if holder == request.version:
        return None
    same = {request.alias: holder}, {request.alias: request.version}
    pending = (entry for entry in desk.journal.pending(request.model) if entry.action != "follow")
    return next((entry for entry in pending if (entry.before, entry.after) == same), None)


def _note(desk: RegistryDesk, request: PromotionRequest, verdict: GateVerdict, smoke: SmokeResult | None) -> Note:
    """For the journal: the reason, and what was overridden."""
    against = [] if verdict.passed else [verdict.failures]
    if smoke is not None and not smoke.passed:
        against.append(f"smoke test: {smoke.error}")
    reason = request.reason or "promoted by hand"
    why = f"{reason} (forced: {'; '.join(against)})" if against else reason
    study = parse_version(desk.client, f"{request.model}/{request.version}").study
    return Note("promote", why, study, forced=bool(against))


def require_promoted(promoted: Promoted) -> Promoted:
    """The same, unless the gate refused it or it failed its smoke test and was not forced.

    Raises:
        AcfError: with the numbers, or with the answers.
    """
    verdict, smoke = promoted.verdict, promoted.smoke
    of = f"{verdict.model}/{verdict.version} as {verdict.alias}"
    if smoke is not None and not smoke.passed and promoted.status != "promoted":  # promoted: by force
        became = {
            "refused": "did not take the alias",
            "rolled back": "was taken back",
            "unchanged": "keeps the alias that it had already",
        }[promoted.status]
        raise AcfError(f"{of} {became}, its smoke test failed: {smoke.error}")
    if promoted.status == "refused":
        raise AcfError(f"the gate refuses {of}: {verdict.failures}")
    return promoted


def smoke_test(desk: RegistryDesk, promoted: Promoted, bench: Workbench) -> Promoted:
    """Ask the promoted model a question through MLflow, in a process of its own; take the move back if it fails.

    The answer must be the checkpoint's own greedy one. A version that held the alias already is asked too: a process
    that was killed after its move left it untested. There is no move to take back then.
    """
    verdict = promoted.verdict
    if promoted.status not in {"promoted", "unchanged"}:
        return promoted
    if promoted.status == "unchanged" and holders(desk.client, verdict.model).get(verdict.alias) != verdict.version:
        return promoted  # the same request waits for approval already
    smoke = _smoke(verdict.model, verdict.version, bench)
    if smoke.passed or promoted.status == "unchanged":
        return promoted.model_copy(update={"smoke": smoke})
    why = f"the smoke test of {verdict.model}/{verdict.version} failed: {smoke.error}"
    undoing = promoted.entry.id if promoted.entry else None
    entry = rollback(
        desk.client, desk.journal, verdict.model, alias=verdict.alias, why=why, undoing=undoing, automatic=True
    )
    return promoted.model_copy(update={"status": "rolled back", "entry": entry, "smoke": smoke})


def approve(desk: RegistryDesk, request: str, bench: Workbench, *, why: str = "") -> Approved:
    """Carry out a move that was asked for, if every version that it moves to answers as its checkpoint does.

    They are tried before the move: what fails is never under the alias, and the request goes on waiting.

    Raises:
        ConfigurationError: when there is no such request, or an alias has moved since it was made.
        ModelError: when a version or its checkpoint is not there any more.
        AcfError: when a version fails its smoke test.
    """
    asked = require_approvable(desk.client, desk.journal, request)
    smokes = tuple(_smoke(asked.model, version, bench) for version in sorted({*asked.after.values()} - {""}, key=int))
    for smoke in smokes:
        if not smoke.passed:
            raise AcfError(
                f"{smoke.uri} failed its smoke test: {smoke.error}; no alias moved and the request goes on waiting, "
                f"refuse it: acf registry approve {request} --reject"
            )
    return Approved(entry=carry_out(desk.client, desk.journal, request, why=why), smokes=smokes)


def _smoke(model: str, version: str, bench: Workbench) -> SmokeResult:
    """Ask a version, by its number: an alias may have moved on meanwhile."""
    uri = f"models:/{model}/{version}"
    request = SmokeRequest(uri=uri, registry=bench.settings.mlflow_uri)
    done = bench.supervisor.run(SMOKE, request, timeout_s=_SMOKE_TIMEOUT_S)
    if done.result is None:
        return SmokeResult(uri=uri, prompt="", passed=False, error=f"{done.status}: {done.error}")
    return SmokeResult.model_validate(done.result)


def _measured(
    desk: RegistryDesk, version: RegisteredVersion, challenger: RegisteredVersion, bench: Workbench
) -> VersionEvidence:
    from agentic_compression.checkpoints import checkpoint_ref
    from agentic_compression.study.episode import evaluate_on, validate_data

    known = desk.evidence.of_version(version)
    config = StudyEvidence(bench).config(challenger.study)
    if config is None:
        return known.model_copy(update={"missing": f"study {challenger.study} is gone, and with it what to ask"})
    if not Path(version.source).is_dir():
        return known.model_copy(update={"missing": f"its checkpoint {version.source} is gone", "evaluation": None})
    dataset, _ = validate_data(config, bench)
    reference = checkpoint_ref(Path(version.source), BASELINE.key, shared=True)
    outcome = evaluate_on("report", config, dataset, reference, bench)
    if outcome.evaluation is None:
        missing = f"measuring it {outcome.status}: {outcome.error}"
        return known.model_copy(update={"missing": missing, "evaluation": None, "objectives": None})
    evaluation = outcome.evaluation
    return known.model_copy(update={"evaluation": evaluation, "objectives": evaluation.objectives, "missing": ""})
