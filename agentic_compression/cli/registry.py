"""``acf registry``: what is registered, and what became of the aliases."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from agentic_compression.cli import registry_moves
from agentic_compression.cli.registry_words import asked_by, facts, moves, notes, waiting, what_happened

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from agentic_compression.registry import AliasJournal

__all__ = ["app"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Model = Annotated[str | None, typer.Argument(help="Registered model; all when left out.")]
Version = Annotated[str, typer.Argument(help="MODEL/NUMBER or MODEL@ALIAS.")]

app = typer.Typer(help="Registered model versions and their aliases.", no_args_is_help=True)


@app.callback()
def _registry() -> None:
    """Registered model versions and their aliases."""


app.command("promote")(registry_moves.promote)
app.command("rollback")(registry_moves.rollback)
app.command("approve")(registry_moves.approve)


@app.command("list")
def list_registered(model: Model = None, as_json: Json = False) -> None:
    """Versions with their aliases and objectives; how many were refused an alias; what waits for an approval.

    Examples:

      acf registry list

      acf registry list demo--demo --json
    """
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import brief, wide_console
    from agentic_compression.registry import list_versions

    client, journal = _open()
    versions = list_versions(client, model)
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json", exclude={"tags"}) for item in versions], indent=2))
        return
    console = wide_console()
    if not versions:
        console.print("no registered versions yet; 'acf run' registers the members of each frontier")
        return
    table = Table("model", "version", "aliases", "strategy", "accuracy", "latency ms", "size MB", "state")
    for version in versions:
        goals = version.objectives
        table.add_row(
            version.model,
            version.version,
            ", ".join(version.aliases),
            escape(brief(version.strategy)),
            f"{goals.get('accuracy', float('nan')):.3f}",
            f"{goals.get('latency_ms', float('nan')):.1f}",
            f"{goals.get('model_size_gb', float('nan')) * 1000:.2f}",
            version.state,
            style=None if version.state == "frontier" else "dim",
        )
    console.print(table)
    for note in notes(versions):
        console.print(escape(note), soft_wrap=True)
    for entry in journal.pending(model):
        line = f"waits for approval: {waiting(entry, versions)}; next: acf registry approve {entry.id}"
        console.print(escape(line), soft_wrap=True)


@app.command()
def show(version: Version, as_json: Json = False) -> None:
    """One version: aliases, those it was refused and why, evidence, where it was measured, how to load it.

    Examples:

      acf registry show demo--demo@champion

      acf registry show demo--demo/3 --json
    """
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console
    from agentic_compression.registry import parse_version

    client, _ = _open()
    found = parse_version(client, version)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = wide_console()
    table = Table("what", "value")
    for name, value in facts(found):
        table.add_row(name, escape(value))
    console.print(table)
    console.print(f'load it: mlflow.pyfunc.load_model("models:/{found.name}").predict(["…"])', soft_wrap=True)
    console.print(
        f'serve it: eval "$(acf env)" && mlflow models serve -m models:/{found.name} --env-manager local',
        soft_wrap=True,
    )


@app.command()
def history(model: Model = None, as_json: Json = False) -> None:
    """Every move of an alias: when, who, why, from which version to which; requests and refusals too.

    Examples:

      acf registry history

      acf registry history demo--demo --json
    """
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    _, journal = _open()
    entries = journal.entries(model)
    if as_json:
        typer.echo(json.dumps([entry.model_dump(mode="json") for entry in entries], indent=2))
        return
    ended = {entry.id: entry for entry in entries if entry.kind == "done"}
    requests = {entry.id: entry for entry in entries if entry.kind == "requested"}
    open_ones, valid = {entry.id for entry in journal.pending(model)}, {entry.id for entry in journal.valid(entries)}
    table = Table("when (UTC)", "id", "model", "what", "moves", "who", "why")
    for entry in entries:
        if entry.kind == "done":
            continue
        recovered = entry.id in ended and ended[entry.id].recovered
        what = what_happened(entry, requests, recovered=recovered, waits=entry.id in open_ones)
        if entry.id not in valid:
            what += "; of a model deleted since"
        of = asked_by(entry) if entry.kind != "rejected" else entry.who
        row = (entry.at[:19], entry.id, entry.model, what, "\n".join(moves(entry)), of, entry.why)
        table.add_row(*map(escape, row), style=None if entry.id in valid else "dim")
    console = wide_console()
    console.print(table if table.row_count else "no alias has moved yet")


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="MODEL/NUMBER or MODEL@ALIAS to compare with.")],
    second: Annotated[str, typer.Argument(help="MODEL/NUMBER or MODEL@ALIAS to compare.")],
    as_json: Json = False,
) -> None:
    """Two versions beside each other, from what was recorded: objectives, paired accuracy, environments.

    Examples:

      acf registry diff demo--demo/1 demo--demo@champion

      acf registry diff demo--demo/2 demo--demo/3 --json
    """
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console
    from agentic_compression.records import Comparison
    from agentic_compression.registry import parse_version
    from agentic_compression.study import open_workbench
    from agentic_compression.study.promotion import open_desk

    desk = open_desk(open_workbench())
    versions = [parse_version(desk.client, text) for text in (first, second)]
    one, other = (desk.evidence.of_version(version) for version in versions)
    compared, differences = desk.evidence.compare(other, one)
    accuracy = compared.model_dump(mode="json") if isinstance(compared, Comparison) else None
    if as_json:
        values = {
            "versions": [version.model_dump(mode="json") for version in versions],
            "comparison": accuracy,
            "not_compared": compared if isinstance(compared, str) else "",
            "environment": list(differences),
        }
        typer.echo(json.dumps(values, indent=2))
        return
    table = Table("", versions[0].name, versions[1].name)
    known = [dict(facts(version)) for version in versions]
    for name in dict.fromkeys((*known[0], *known[1])):
        left, right = (values.get(name, "") for values in known)
        table.add_row(name, escape(left), escape(right), style="dim" if left == right else None)
    console = wide_console()
    console.print(table)
    summary = compared.summary if isinstance(compared, Comparison) else f"not compared: {compared}"
    console.print(f"{versions[1].name} beside {versions[0].name}: {summary}", soft_wrap=True)
    for difference in differences:
        console.print(f"other environment: {difference}", soft_wrap=True)


def _open() -> tuple[MlflowClient, AliasJournal]:
    """Registry and journal, with moves that an earlier process left unfinished carried out."""
    from agentic_compression.registry import journal_of, recover
    from agentic_compression.settings import get_settings
    from agentic_compression.tracking import open_client

    settings = get_settings()
    client = open_client(settings.mlflow_uri)
    journal = journal_of(settings, client)
    recover(client, journal)
    return client, journal
