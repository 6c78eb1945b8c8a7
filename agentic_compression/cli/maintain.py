"""``acf doctor`` says what this machine can do; ``acf clean`` removes what a study left behind."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentic_compression.errors import ConfigurationError

if TYPE_CHECKING:
    from agentic_compression.settings import Settings

__all__ = ["clean", "doctor", "env"]


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False) -> None:
    """What this machine can do: devices, methods, energy source, disk, keys (never their values).

    Example:

      acf doctor --json
    """
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table("what", "found")
    for key, value in facts.items():
        table.add_row(key, escape(value if isinstance(value, str) else json.dumps(value)))
    wide_console().print(table)


def clean(
    study: Annotated[str | None, typer.Argument(help="Study to remove; with --caches it may be left out.")] = None,
    caches: Annotated[bool, typer.Option("--caches", help="Remove stored evaluations and converted datasets.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a study: its files, runs and registered versions; checkpoints that nothing else points at go too.

    Examples:

      acf clean demo-demo

      acf clean --caches --yes
    """
    from agentic_compression.settings import get_settings

    settings = get_settings()
    if study is None and not caches:
        raise ConfigurationError("name a study to remove, or give --caches")
    if caches and (yes or typer.confirm("Remove stored evaluations and converted datasets?", err=True)):
        # Left by processes that were killed, and first stages that strategies may share.
        unfinished = (*settings.checkpoints.glob(".*.partial"), *settings.checkpoints.glob(".*.scratch"))
        shared = settings.checkpoints / "prefixes"
        for folder in (settings.artifacts / "evaluations", settings.artifacts / "datasets", shared, *unfinished):
            shutil.rmtree(folder, ignore_errors=True)
        typer.echo("removed stored evaluations, converted datasets and unfinished checkpoints; made again when needed")
    if study is None:
        return
    from agentic_compression.study import open_workbench
    from agentic_compression.study.removal import remove_study, require_study

    bench = open_workbench()
    require_study(study, bench)
    if not yes and not typer.confirm(f"Remove study {study} with all its episodes?", err=True):
        raise typer.Abort
    removed = remove_study(study, bench)
    counts = {"episode": removed.episodes, "version": removed.versions, "checkpoint": removed.checkpoints}
    told = ", ".join(f"{number} {noun}{'' if number == 1 else 's'}" for noun, number in counts.items())
    typer.echo(f"removed study {study}: {told}")
    for line in removed.kept:
        typer.echo(line)


def env() -> None:
    """Print shell lines that make the ``zenml`` and ``mlflow`` commands use this project's state.

    ZenML then warns that there is no ZenML repository. That is meant: a repository would keep one state root's active
    stack for all of them. Do not run 'zenml init'; run 'zenml pipeline run' in the checkout instead.

    Example:

      eval "$(acf env)" && zenml pipeline runs list
    """
    import shlex

    from agentic_compression.settings import get_settings

    settings = get_settings()
    values = {
        "ACF_HOME": str(settings.root),
        "ZENML_CONFIG_PATH": str(settings.zenml_config),
        "ZENML_REPOSITORY_PATH": str(settings.zenml_config),
        "ZENML_ANALYTICS_OPT_IN": "false",
        "MLFLOW_TRACKING_URI": settings.mlflow_uri,
    }
    for name, value in values.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _grid(settings: Settings) -> str:
    """The factor with its year and source, or what is wrong with the settings."""
    from agentic_compression.evaluation.grid import grid_factor

    try:
        return grid_factor(settings.grid_country, settings.grid_grams_per_kwh, settings.grid_region).text
    except ConfigurationError as error:
        return str(error)


def _electricity(settings: Settings) -> str:
    price, pue = settings.electricity_price, f"PUE {settings.pue:g}"
    if price is None:
        return f"no price set (ACF_ELECTRICITY_PRICE), {pue}"
    return f"{price:g} {settings.electricity_currency} a kWh, {pue}"


def _facts() -> dict[str, Any]:
    import os
    import platform

    import psutil
    import torch

    from agentic_compression import __version__
    from agentic_compression.evaluation.energy import select_counter
    from agentic_compression.methods import describe_methods
    from agentic_compression.methods.estimates import measure_rates
    from agentic_compression.settings import get_settings

    settings = get_settings()
    rates = measure_rates(settings.root)
    counter = select_counter("auto", settings.cpu_watts_per_core, gpu_watts=settings.gpu_watts)
    existing = next(folder for folder in (settings.root, *settings.root.parents) if folder.is_dir())
    disk = psutil.disk_usage(str(existing))
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    missing = {method.name: method.unavailable_reason for method in describe_methods() if not method.available}
    keys = {"HF_TOKEN": settings.hf_token, "OPENAI_API_KEY": settings.openai_api_key}
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "devices": devices or ["cpu"],
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{psutil.virtual_memory().available / 1e9:.1f} of {psutil.virtual_memory().total / 1e9:.1f} GB free",
        "a thread": f"{rates.flops_per_second / 1e9:.0f} GFLOP/s, {rates.copy_bytes_per_second / 1e9:.1f} GB/s copied",
        "disk": f"{disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB free",
        "state root": str(settings.root),
        "methods": [method.name for method in describe_methods() if method.available],
        "methods not available": missing,
        "energy": f"{counter.source}: {counter.method}" + (f" ({counter.reason})" if counter.reason else ""),
        "grid": _grid(settings),
        "electricity": _electricity(settings),
        "keys": {name: "set" if value else "not set" for name, value in keys.items()},
    }
