"""``acf registry promote``, ``rollback`` and ``approve``: the commands that move aliases."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentic_compression.cli.registry_words import moves, waiting
from agentic_compression.errors import AcfError, ConfigurationError

if TYPE_CHECKING:
    from agentic_compression.records import JournalEntry, Promoted, PromotionPolicy, PromotionRequest, SmokeResult

__all__ = ["approve", "promote", "rollback"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the journal.")]


def promote(
    version: Annotated[str, typer.Argument(help="MODEL/NUMBER or MODEL@ALIAS that is to take the alias.")],
    alias: Annotated[str, typer.Option("--alias", "-a", help="champion, most-accurate, fastest, smallest, …")],
    reason: Reason = "",
    force: Annotated[
        bool,
        typer.Option("--force", help="Promote although the gate refuses it or its answer is wrong; needs a --reason."),
    ] = False,
    require_approval: Annotated[
        bool, typer.Option("--require-approval", help="Write down a request that 'acf registry approve' completes.")
    ] = False,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="Measure both versions again here, promote, and try what is served.")
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option("--smoke/--no-smoke", help="Ask it a question through MLflow before it takes the alias."),
    ] = True,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file; by default promotion.yaml of the state root, or the shipped one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give an alias to a version that passes the promotion gate.

    The gate asks: measured in full, on its study's frontier, within the constraints, measured in the incumbent's
    environment, not dominated by it, not significantly less accurate on the same items. It refuses with its numbers.

    Then the version is asked a question through MLflow; where its answer is not its checkpoint's own, no alias moves.
    With --force it does, and the journal keeps what spoke against it. A request is tried when it is approved; a
    --pipeline tries the version once it has the alias and takes the move back if it fails, forced or not.

    Examples:

      acf registry promote demo--demo/3 --alias champion

      acf registry promote demo--demo/3 --alias champion --pipeline --require-approval

      acf registry promote demo--demo/2 -a smallest --force --reason "a customer needs this one"
    """
    if force and not reason.strip():
        raise ConfigurationError("--force needs a --reason, which is kept in the journal")
    if pipeline and not smoke:
        raise ConfigurationError("--no-smoke does not go with --pipeline, whose last step tries the version")
    from agentic_compression.records import PromotionRequest
    from agentic_compression.registry import parse_version
    from agentic_compression.study import open_workbench
    from agentic_compression.study.promotion import open_desk, require_promoted, settled, smoke_test, verdict_on
    from agentic_compression.study.promotion import promote as carry_out

    rules = _policy(policy)
    bench = open_workbench()
    desk = open_desk(bench, policy=rules)
    found = parse_version(desk.client, version)
    request = PromotionRequest(
        model=found.model,
        version=found.version,
        alias=alias,
        reason=reason,
        force=force,
        require_approval=require_approval,
        policy=rules,
    )
    if pipeline and (unchanged := settled(desk, request)) is not None:
        with _busy("asking the version"):  # it may hold the alias since a pipeline that was killed before it tried it
            promoted = smoke_test(desk, unchanged, bench)
    elif pipeline:
        promoted = _through_pipeline(request)
    else:
        with _busy("asking the gate and the version"):
            promoted = carry_out(desk, request, verdict_on(desk, request), bench if smoke else None)
    if as_json:
        typer.echo(promoted.model_dump_json(indent=2))
    require_promoted(promoted)
    if not as_json:
        _print_promoted(promoted)


def rollback(
    model: Annotated[str, typer.Argument(help="Registered model.")],
    alias: Annotated[
        str | None, typer.Option("--alias", "-a", help="Take back this alias's last move; by default the model's.")
    ] = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Take back the last move of a model's aliases, or of one of them.

    Studies do not give the alias to that version again; 'acf registry promote' does.

    Examples:

      acf registry rollback demo--demo

      acf registry rollback demo--demo --alias champion --reason "answers got worse"
    """
    from agentic_compression.registry import rollback as take_back
    from agentic_compression.study import open_workbench
    from agentic_compression.study.promotion import open_desk

    desk = open_desk(open_workbench())
    entry = take_back(desk.client, desk.journal, model, alias=alias, why=reason or "rolled back by hand")
    if as_json:
        typer.echo(entry.model_dump_json(indent=2))
        return
    typer.echo(_line(entry))
    typer.echo(f"see: acf registry history {model}")


def approve(
    request: Annotated[str | None, typer.Argument(help="Id of a request; what waits is listed when left out.")] = None,
    refuse: Annotated[bool, typer.Option("--reject", help="Refuse it instead.")] = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Carry out a promotion that waits for approval, or refuse it.

    Each version that would take an alias is asked a question through MLflow first; where its answer is not its
    checkpoint's own, nothing moves. What a study asks for includes taking aliases away from versions that left its
    frontier; approved, it counts as the study's choice, and a refusal keeps the study from asking for the same again.

    Examples:

      acf registry approve

      acf registry approve 4f0c2a9d81be --reason "checked by hand"

      acf registry approve 4f0c2a9d81be --reject --reason "after the release"
    """
    from agentic_compression.registry import list_versions, reject
    from agentic_compression.study import open_workbench
    from agentic_compression.study.promotion import approve as try_and_move
    from agentic_compression.study.promotion import open_desk

    bench = open_workbench()
    desk = open_desk(bench)
    if request is None:
        pending = desk.journal.pending()
        if as_json:
            typer.echo(json.dumps([entry.model_dump(mode="json") for entry in pending], indent=2))
            return
        versions = list_versions(desk.client) if pending else []
        for entry in pending:
            typer.echo(f"{entry.id}  {waiting(entry, versions)}")
        if not pending:
            typer.echo("nothing waits for approval")
        return
    if refuse:
        entry = reject(desk.journal, request, why=reason)
        typer.echo(entry.model_dump_json(indent=2) if as_json else f"refused {request} of {_line(entry)}")
        return
    with _busy("asking the versions"):
        approved = try_and_move(desk, request, bench, why=reason)
    if as_json:
        typer.echo(approved.model_dump_json(indent=2))
        return
    for smoke in approved.smokes:
        typer.echo(_answered(smoke))
    typer.echo(_line(approved.entry))


def _policy(path: Path | None) -> PromotionPolicy:
    from agentic_compression.registry import policy_file, read_policy
    from agentic_compression.settings import get_settings

    return read_policy(path or policy_file(get_settings().root))


def _through_pipeline(request: PromotionRequest) -> Promoted:
    from agentic_compression import orchestration
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.settings import get_settings
    from agentic_compression.study.workbench import bootstrap_lock

    shared_supervisor().start()
    settings = get_settings()
    orchestration.prepare_environment(settings)
    with bootstrap_lock(settings):
        orchestration.ensure_stack(settings)
    return orchestration.run_promotion(request)


def _print_promoted(promoted: Promoted) -> None:
    verdict = promoted.verdict
    for check in verdict.checks:
        typer.echo(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}")
    if promoted.smoke is not None:
        typer.echo(_answered(promoted.smoke))
    of = f"{verdict.alias} of {verdict.model}"
    if promoted.status == "requested" and promoted.entry is not None:
        typer.echo(f"{of} waits for approval; next: acf registry approve {promoted.entry.id}")
    elif promoted.status == "requested":
        raise AcfError("a request without an entry")
    elif promoted.status == "unchanged" and promoted.entry is not None:
        typer.echo(
            f"{of}: the same move to version {verdict.version} waits for approval already; next: acf registry approve "
            f"{promoted.entry.id}"
        )
    elif promoted.status == "unchanged":
        typer.echo(f"{of} is at version {verdict.version} already; nothing moved")
    else:
        typer.echo(
            f"{of} is at version {verdict.version} now, before at {verdict.incumbent or 'none'}; "
            f"back: acf registry rollback {verdict.model} --alias {verdict.alias}"
        )


def _answered(smoke: SmokeResult) -> str:
    if not smoke.passed:
        return f"FAILED  smoke test of {smoke.uri}: {smoke.error}"
    return f"smoke test of {smoke.uri}: {smoke.prompt!r} → {smoke.answer!r}, the same as its checkpoint's own"


def _busy(what: str) -> AbstractContextManager[object]:
    """A line on standard error, where that is a terminal, until the work is done."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def _line(entry: JournalEntry) -> str:
    return f"{entry.model}: {', '.join(moves(entry))}"
