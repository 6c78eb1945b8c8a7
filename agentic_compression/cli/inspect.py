"""Commands that look and do not change anything: spec, methods, frontier, analyze."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentic_compression.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentic_compression.methods import Template
    from agentic_compression.records import FrontierDocument, MethodDescription, ModelSpec

__all__ = ["analyze", "frontier", "methods", "print_spec", "spec"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
_NO_STUDY = "none yet; begin one with 'acf run'"


def spec(
    model: Annotated[str, typer.Option("--model", "-m", help="Hub id, checkpoint folder, models:/NAME@ALIAS, 'demo'.")],
    as_json: Json = False,
) -> None:
    """What is known about MODEL before anything runs, with the source of each fact.

    Examples:

      acf spec -m demo

      acf spec -m meta-llama/Llama-3.1-8B --json
    """
    from agentic_compression.methods import describe_methods
    from agentic_compression.settings import get_settings
    from agentic_compression.spec import infer_spec

    found = infer_spec(_folder_of(model), settings=get_settings(), methods=describe_methods())
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        print_spec(found)


def print_spec(spec: ModelSpec, *, to_stderr: bool = False) -> None:
    """A table of the specification and one of memory needs."""
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    console = wide_console(stderr=to_stderr)
    table = Table("fact", "value", title=escape(spec.model), title_justify="left")
    hidden = {"model", "memory", "sources", "warnings", "bytes_by_dtype"}
    for field, value in spec.model_dump(exclude=hidden, exclude_none=True).items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        shown = ", ".join(shown) if isinstance(shown, tuple | list) else str(shown)
        table.add_row(field.replace("_", " "), escape(shown))
    for source in spec.sources:
        kind = "counted" if source.exact else "estimated"
        table.add_row(f"source: {source.source}", f"{source.parameters:,} parameters, {kind} {escape(source.detail)}")
    console.print(table)
    needs = Table("use", "minimum", "recommended", title="device memory", title_justify="left")
    for need in spec.memory:
        needs.add_row(need.use, _gigabytes(need.minimum_bytes), _gigabytes(need.recommended_bytes))
    console.print(needs)
    for warning in spec.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")


def methods(
    action: Annotated[str | None, typer.Argument(metavar="[show]", help="'show' for one method.")] = None,
    name: Annotated[str | None, typer.Argument(help="The method, with 'show'.")] = None,
    as_json: Json = False,
) -> None:
    """Compression methods and templates: which can run on this machine, and why not.

    Examples:

      acf methods

      acf methods show gptq

      acf methods --json
    """
    from agentic_compression.methods import describe_methods, templates

    known = describe_methods()
    wanted = name if action == "show" else action
    if (action == "show") != (name is not None):
        raise ConfigurationError("use 'acf methods', or 'acf methods show NAME'")
    if wanted is not None:
        known = tuple(method for method in known if method.name == wanted)
        if not known:
            names = ", ".join(method.name for method in describe_methods())
            raise ConfigurationError(f"unknown method {wanted!r}; known: {names}")
    if as_json:
        typer.echo(json.dumps([method.model_dump(mode="json") for method in known], indent=2))
    elif wanted is not None:
        _print_method(known[0])
    else:
        _print_methods(known, templates())


def _print_methods(known: Sequence[MethodDescription], named: Sequence[Template]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    console = wide_console()
    table = Table("method", "category", "what it does", "available")
    for method in known:
        state = "yes" if method.available else f"no: {method.unavailable_reason}"
        table.add_row(method.name, method.category, escape(method.summary), escape(state))
    console.print(table)
    shown = Table("template", "strategy", "what for")
    for template in named:
        shown.add_row(template.name, escape(template.strategy.label), escape(template.description))
    console.print(shown)
    console.print("One method: acf methods show gptq")


def _print_method(method: MethodDescription) -> None:
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    console = wide_console()
    console.print(f"{method.name} ({method.category}): {escape(method.summary)}", soft_wrap=True)
    if not method.available:
        console.print(f"[yellow]not available:[/] {escape(method.unavailable_reason or '')}", soft_wrap=True)
    table = Table("parameter", "allowed", "default", "meaning")
    for parameter in method.parameters:
        meaning = parameter.description
        if parameter.active_when:
            meaning += f" (only with {parameter.active_when[0]}={parameter.active_when[1]})"
        table.add_row(parameter.name, parameter.allowed, str(parameter.default), escape(meaning))
    console.print(table)
    needs = [
        text
        for wanted, text in (
            (method.needs_calibration, "calibration text"),
            (method.trains, "training text"),
            (method.needs_gpu, "an NVIDIA GPU"),
        )
        if wanted
    ]
    console.print(f"needs: {', '.join(needs) or 'nothing but the model'}")
    console.print(f"may follow: {', '.join(method.may_follow) or 'nothing'}")
    if method.must_follow:
        console.print(f"must follow: {' or '.join(method.must_follow)}")
    if method.may_not_follow:
        console.print(f"may not follow: {', '.join(method.may_not_follow)}")
    console.print(f"source: {escape(method.paper)}", soft_wrap=True)
    console.print(f'example: acf compress -m demo --strategy "{escape(method.example)}"', soft_wrap=True)


def frontier(
    study: Annotated[str, typer.Argument(help="Study name.")],
    as_json: Json = False,
) -> None:
    """The Pareto frontier of STUDY.

    Example:

      acf frontier demo-demo --json
    """
    from agentic_compression.settings import get_settings
    from agentic_compression.study.workbench import study_folder

    _show(study_folder(get_settings(), study), as_json)


def analyze(
    study: Annotated[
        str | None, typer.Argument(help="Study name, or a study's folder; the studies are listed when left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What STUDY found: endings, frontier, spent time and energy.

    Examples:

      acf analyze

      acf analyze demo-demo

      acf analyze data/experiments/demo-demo --json
    """
    if study is None:
        typer.echo(json.dumps(_studies()) if as_json else "\n".join(_studies()) or _NO_STUDY)
        return
    folder = _study_folder(study)
    _show(folder, as_json)
    if as_json:
        return
    from agentic_compression.cli.live import wide_console
    from agentic_compression.records import FinalResults

    results = FinalResults.model_validate_json(_read(folder, "final_results.json"))
    counts = ", ".join(f"{number} {status}" for status, number in results.episodes_by_status.items())
    trend = " → ".join(f"{value:.4f}" for value in results.hypervolume_by_episode)
    console = wide_console()
    console.print(f"{results.model} on {results.dataset}, planner {results.planner}, seed {results.seed}")
    console.print(f"{results.episodes_run} episodes ({counts}); ended by {results.termination_reason}")
    console.print(f"hypervolume by episode: {trend}")
    console.print(
        f"{results.wall_seconds:.0f} s of work, {results.energy_kwh * 1000:.3g} Wh and {results.co2_grams:.3g} g CO2e "
        f"({results.energy_source}); picture: {folder / 'pareto_visualization.html'}",
        soft_wrap=True,
    )


def _study_folder(study: str) -> Path:
    """A folder that holds a study, else the one that a study of this name has."""
    from agentic_compression.records.study import STUDY_NAME
    from agentic_compression.settings import get_settings
    from agentic_compression.study.workbench import study_folder

    named = Path(study).expanduser()
    if (named / "pareto_frontier.json").is_file() or not re.fullmatch(STUDY_NAME, study):
        return named
    return study_folder(get_settings(), study)


def _show(folder: Path, as_json: bool) -> None:
    from agentic_compression.cli.live import frontier_table, wide_console

    text = _read(folder, "pareto_frontier.json")
    if as_json:
        typer.echo(text)
        return
    wide_console().print(frontier_table(_document(text), None))


def _document(text: str) -> FrontierDocument:
    from agentic_compression.records import FrontierDocument

    return FrontierDocument.model_validate_json(text)


def _read(folder: Path, name: str) -> str:
    path = folder / name
    if path.is_file():
        return path.read_text()
    raise ConfigurationError(f"no study in {folder}; studies here: {', '.join(_studies()) or _NO_STUDY}")


def _studies() -> list[str]:
    """Names of the studies that have a frontier."""
    from agentic_compression.settings import get_settings

    return sorted(found.parent.name for found in get_settings().experiments.glob("*/pareto_frontier.json"))


def _folder_of(model: str) -> str:
    if not model.startswith("models:/"):
        return model
    from agentic_compression.registry import model_folder
    from agentic_compression.settings import get_settings
    from agentic_compression.tracking import open_client

    return str(model_folder(open_client(get_settings().mlflow_uri), model))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
