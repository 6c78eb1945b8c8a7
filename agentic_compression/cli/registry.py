"""``acf registry``: the registered versions and their aliases."""

from __future__ import annotations

import json
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(help="Registered model versions and their aliases.", no_args_is_help=True)


@app.callback()
def _registry() -> None:
    """Registered model versions and their aliases."""


@app.command("list")
def list_registered(
    model: Annotated[str | None, typer.Argument(help="Registered model; all when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Versions with their aliases, objectives and checkpoint.

    Examples:

      acf registry list

      acf registry list demo--demo --json
    """
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import brief, wide_console
    from agentic_compression.registry import list_versions
    from agentic_compression.settings import get_settings
    from agentic_compression.tracking import open_client

    versions = list_versions(open_client(get_settings().mlflow_uri), model)
    if as_json:
        typer.echo(json.dumps([version.model_dump(mode="json") for version in versions], indent=2))
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
