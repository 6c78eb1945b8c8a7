"""``acf memory``: what earlier studies have learned; show it, forget it, carry it to another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentic_compression.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from agentic_compression.memory import Finding, Forgotten, Imported, Recommendation, Workspace
    from agentic_compression.records import Experience, Recalled, Situation, Strategy

__all__ = ["app"]

app = typer.Typer(help="What earlier studies have learned, for the studies that follow.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
_RECALLED = 128


@app.callback()
def _memory() -> None:
    """What earlier studies have learned, for the studies that follow."""


@app.command("show")
def show(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only experiences with this model.")] = None,
    similar_to: Annotated[
        str | None, typer.Option("--similar-to", help="What memory recommends for this model; needs --dataset.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="With --similar-to: the dataset, compared by name.")
    ] = None,
    device: Annotated[str, typer.Option(help="With --similar-to: cpu, cuda, … as studies record it.")] = "cpu",
    limit: Annotated[int, typer.Option(min=1, help="Rows of each table.")] = 20,
    as_json: Json = False,
) -> None:
    """What is remembered: findings by method, the experiences of one model, or what to try for a new one.

    Examples:

      acf memory show

      acf memory show --model demo --json

      acf memory show --similar-to demo -d demo
    """
    if (similar_to is None) != (dataset is None):
        raise ConfigurationError("--similar-to MODEL and --dataset DATASET belong together; give both or neither")
    if similar_to is not None and model is not None:
        raise ConfigurationError("--model and --similar-to ask different questions; give one of them")
    from agentic_compression.memory import read_experiences

    known = read_experiences(_workspace())
    if similar_to is not None and dataset is not None:
        _show_similar(known, _situation(similar_to, dataset, device), limit, as_json=as_json)
    elif model is not None:
        _show_model(known, model, limit, as_json=as_json)
    else:
        _show_all(known, limit, as_json=as_json)


@app.command("forget")
def forget(
    study: Annotated[str | None, typer.Option("--study", "-s", help="Everything of this study.")] = None,
    digest: Annotated[str | None, typer.Option("--digest", help="One experience, or all of a model's digest.")] = None,
    older_than: Annotated[float | None, typer.Option("--older-than", min=0, help="Older than so many days.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything, quarantine included.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Forget experiences. Notes written by hand in workspace/knowledge stay, and so do studies and checkpoints.

    A study that goes on later is remembered again.

    Examples:

      acf memory forget --study demo-demo

      acf memory forget --older-than 90 --yes

      acf memory forget --all
    """
    given = [study is not None, digest is not None, older_than is not None, everything]
    if sum(given) != 1:
        raise ConfigurationError("say what to forget: one of --study S, --digest D, --older-than DAYS or --all")
    from agentic_compression.memory import Forgotten, read_checkpoints, read_experiences, refresh_knowledge, to_forget
    from agentic_compression.memory import forget as forget_them
    from agentic_compression.spec import size_class

    workspace = _workspace()
    known = read_experiences(workspace) if workspace.root.is_dir() else {}
    doomed = to_forget(known, study, digest, older_than)
    noted = study is not None and any(item.study == study for item in read_checkpoints(workspace))
    if not doomed and not noted and (study or digest):
        raise ConfigurationError(_nothing_of(study, digest, known))
    gone = Forgotten(experiences=0)
    if doomed or noted or (everything and workspace.root.is_dir()):
        if not yes and not typer.confirm(f"Forget {len(doomed)} of {len(known)} experiences?", err=True):
            raise typer.Abort
        gone = forget_them(workspace, doomed, study, everything=everything)
        refresh_knowledge(workspace, size_class)
    _print_forgotten(gone, as_json=as_json)


@app.command("export")
def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE when it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write every experience to FILE, one JSON object a line.

    Example:

      acf memory export experiences.jsonl
    """
    from agentic_compression.memory import export_experiences

    if file.is_dir() or (file.exists() and not overwrite):
        hint = "name a file" if file.is_dir() else "give --overwrite or another name"
        raise ConfigurationError(f"{str(file)!r} is there already; {hint}")
    count = export_experiences(_workspace(), file)
    if as_json:
        typer.echo(json.dumps({"file": str(file), "experiences": count}))
    else:
        typer.echo(f"wrote {count} experiences to {file}; next: acf memory import {file}")


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines file of 'acf memory export'.")],
    as_json: Json = False,
) -> None:
    """Take in the experiences of FILE. Each line is checked; what cannot be true goes to workspace/quarantine.

    Ends with 1 when there was no valid line.

    Example:

      acf memory import experiences.jsonl
    """
    from agentic_compression.memory import import_experiences, refresh_knowledge
    from agentic_compression.spec import size_class

    workspace = _workspace()
    done = import_experiences(workspace, file)
    if done.added:
        refresh_knowledge(workspace, size_class)
    if as_json:
        typer.echo(done.model_dump_json(indent=2))
    else:
        _print_imported(done, file, workspace)
    if done.quarantined and done.quarantined == done.lines:
        raise typer.Exit(1)


def _workspace() -> Workspace:
    from agentic_compression.memory import Workspace
    from agentic_compression.settings import get_settings

    return Workspace(get_settings().workspace)


def _situation(model: str, dataset: str, device: str) -> Situation:
    from agentic_compression.methods import describe_methods
    from agentic_compression.records import Situation
    from agentic_compression.settings import get_settings
    from agentic_compression.spec import infer_spec
    from agentic_compression.study.naming import short_name

    settings = get_settings()
    if model.startswith("models:/"):
        from agentic_compression.registry import model_folder
        from agentic_compression.tracking import open_client

        model = str(model_folder(open_client(settings.mlflow_uri), model))
    spec = infer_spec(model, settings=settings, methods=describe_methods())
    return Situation(spec=spec, dataset=short_name(dataset), device=device)


def _show_all(known: Mapping[str, Experience], limit: int, *, as_json: bool) -> None:
    from agentic_compression.memory import findings, list_quarantined, read_checkpoints
    from agentic_compression.spec import size_class

    workspace = _workspace()
    found = findings(known.values(), size_class)
    aside, kept = list_quarantined(workspace), read_checkpoints(workspace)
    studies = sorted({item.study for item in known.values()})
    if as_json:
        facts: dict[str, Any] = {"folder": str(workspace.root), "experiences": len(known), "studies": studies}
        facts["findings"] = [item.model_dump(mode="json") for item in found]
        facts["checkpoints"] = [item.model_dump(mode="json") for item in kept]
        facts["quarantined"] = [item.model_dump(mode="json") for item in aside]
        typer.echo(json.dumps(facts, indent=2))
        return
    if not known:
        typer.echo(f"nothing is remembered in {workspace.root}; 'acf run' remembers what its episodes measure")
    else:
        _print_findings([item for item in found if item.scope == "all"], limit)
        typer.echo(
            f"{len(known)} experiences of {len(studies)} studies, {len(kept)} checkpoints noted; "
            f"findings by method, size and family: {workspace.knowledge}"
        )
    if aside:
        typer.echo(f"{len(aside)} set aside as damaged or not believable: {workspace.quarantine}")


def _show_model(known: Mapping[str, Experience], model: str, limit: int, *, as_json: bool) -> None:
    mine = {digest: item for digest, item in known.items() if model in {item.model, item.digest}}
    if as_json:
        listed = [{"id": digest, **item.model_dump(mode="json")} for digest, item in mine.items()]
        typer.echo(json.dumps(listed, indent=2))
        return
    if not mine:
        names = _nearest(model, {item.model for item in known.values()})
        raise ConfigurationError(f"nothing is remembered of model {model!r}; models: {names}")
    newest = sorted(mine.items(), key=lambda pair: (pair[1].at, pair[1].study, pair[1].episode), reverse=True)
    _print_experiences(newest[:limit])
    typer.echo(f"{len(mine)} experiences with {model}" + (f", the newest {limit} shown" if len(mine) > limit else ""))


def _show_similar(known: Mapping[str, Experience], situation: Situation, limit: int, *, as_json: bool) -> None:
    from agentic_compression.memory import recalled_from, recommend

    recalled = recalled_from(known.values(), situation, _RECALLED)
    best = recommend(recalled, situation.constraints, limit)
    if as_json:
        facts = {
            "recommendations": [item.model_dump(mode="json") for item in best],
            "recalled": [item.model_dump(mode="json") for item in recalled[:limit]],
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    name = situation.spec.model if situation.spec else "this model"
    if not recalled:
        typer.echo(f"nothing that is remembered is like {name} on {situation.dataset}; 'acf memory show' lists it all")
        return
    _print_recommendations(best)
    _print_recalled(recalled[:limit])


def _print_findings(found: Sequence[Finding], limit: int) -> None:
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    console = wide_console()
    table = Table("method", "what held", "measurements", "studies", "confidence", "median", "spread", "contradicted by")
    names = dict.fromkeys(item.methods for item in found)
    shown = set(list(names)[:limit])
    for item in (item for item in found if item.methods in shown):
        number = item.quantity != "failed"
        table.add_row(
            " → ".join(item.methods),
            item.claim,
            f"{item.held} of {item.n}",
            f"{item.studies_held} of {item.studies}",
            f"{item.confidence:.2f}",
            f"{item.median:.3f}" if number else "",
            f"{item.spread:.3f}" if number else "",
            f"{len(item.contradicted_by)} studies" if item.contradicted_by else "",
        )
    console.print(table)
    if len(names) > limit:
        console.print(f"{limit} of {len(names)} methods and pairs shown; see --limit")


def _print_experiences(listed: Iterable[tuple[str, Experience]]) -> None:
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    table = Table("id", "study", "episode", "strategy", "status", "accuracy", "baseline", "latency", "memory", "size")
    for digest, item in listed:
        table.add_row(digest, item.study, str(item.episode), *_outcome(item))
    wide_console().print(table)


def _print_recalled(recalled: Iterable[Recalled]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    table = Table(title="recalled", title_justify="left")
    for heading in (
        *("similarity", "weight", "model", "dataset", "strategy"),
        *("status", "accuracy", "baseline", "latency", "memory", "size"),
    ):
        table.add_column(heading)
    for entry in recalled:
        item = entry.experience
        numbers = f"{entry.similarity:.2f}", f"{entry.weight:.2f}"
        table.add_row(*numbers, escape(item.model), escape(item.dataset), *_outcome(item))
    wide_console().print(table)


def _print_recommendations(best: Iterable[Recommendation]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    table = Table("score", "strategy", "why", title="recommended", title_justify="left")
    for item in best:
        table.add_row(f"{item.score:.3f}", escape(_brief(item.strategy)), escape("; ".join(item.reasons)))
    wide_console().print(table)


def _print_forgotten(gone: Forgotten, *, as_json: bool) -> None:
    if as_json:
        typer.echo(gone.model_dump_json())
        return
    notes = f" and {gone.checkpoints} notes about checkpoints" if gone.checkpoints else ""
    typer.echo(f"forgot {gone.experiences} experiences{notes}; what is left: acf memory show")


def _print_imported(done: Imported, file: Path, workspace: Workspace) -> None:
    for item in done.reasons:
        typer.echo(f"quarantined {item.origin}: {item.reason}", err=True)
    aside = f", {done.quarantined} in {workspace.quarantine}" if done.quarantined else ""
    typer.echo(f"{file}: {done.added} new, {done.known} known already{aside}; see: acf memory show")


def _nothing_of(study: str | None, digest: str | None, known: Mapping[str, Experience]) -> str:
    if study is not None:
        names = _nearest(study, {item.study for item in known.values()})
        return f"nothing is remembered of study {study!r}; studies: {names}"
    return f"no experience and no model has the digest {digest!r}; see: acf memory show --json"


def _nearest(name: str, names: Collection[str]) -> str:
    """The nearest names, or the first where none is near."""
    from difflib import get_close_matches

    shown = get_close_matches(name, names, n=5, cutoff=0.4) or sorted(names)[:5]
    more = len(names) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more else "")


def _brief(strategy: Strategy) -> str:
    """Without the parameters that have their default; of methods that are not known here, all of them."""
    from agentic_compression.methods import search_space

    return search_space(max(1, len(strategy.stages))).brief(strategy)


def _outcome(item: Experience) -> tuple[str, ...]:
    from rich.markup import escape

    ratios = (item.ratios.get(name) for name in ("latency_ms", "memory_gb", "model_size_gb"))
    return (
        escape(_brief(item.strategy)),
        item.status,
        "" if item.accuracy is None else f"{item.accuracy:.3f}",
        "" if item.baseline_accuracy is None else f"{item.baseline_accuracy:.3f}",
        *("" if ratio is None else f"{ratio:.0%}" for ratio in ratios),
    )
