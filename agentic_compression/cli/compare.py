"""``acf compare``: two checkpoints on the same items."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentic_compression.cli.by_hand import as_it_is, prepare
from agentic_compression.errors import ConfigurationError

if TYPE_CHECKING:
    from agentic_compression.records import DatasetSpec, Evaluation, Report, StudyConfig
    from agentic_compression.study import Workbench
    from agentic_compression.study.comparison import Side

__all__ = ["compare"]

_EPISODE = re.compile(r"(?P<study>[A-Za-z0-9][A-Za-z0-9_.-]{0,99}):(?P<episode>\d{1,6})")
_WHAT = "Checkpoint folder, Hub id, models:/NAME@ALIAS, 'demo', or STUDY:EPISODE."


def compare(
    baseline: Annotated[str, typer.Argument(help=f"What to compare with. {_WHAT}")],
    candidate: Annotated[str, typer.Argument(help=f"What to compare. {_WHAT}")],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", "-d", help="Benchmark name(s), data file, or 'demo'; by default the study's, or demo."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items a task: a seeded sample.", min=1)] = None,
    benchmark_dir: Annotated[Path | None, typer.Option(help="Folder with local copies of benchmarks.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these of the dataset's tasks, separated by commas.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the bootstraps, and of the item choice where no study chose; by default the study's, or 0.",
            min=0,
            max=2**31 - 1,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report into this .md, .html or .json file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Compare CANDIDATE with BASELINE on the same items: paired differences, flips, costs, and a verdict.

    What was measured before is read, not measured again: of two episodes of one study the answers to the report items,
    where both were asked them, else to those that plans were made on.

    Examples:

      acf compare demo ./small

      acf compare demo-demo:0 demo-demo:3 -o report.md

      acf compare models:/demo--demo@baseline models:/demo--demo@smallest -d demo --tasks demo_mc --json
    """
    if output is not None and (output.suffix not in {".md", ".html", ".json"} or output.is_dir()):
        raise ConfigurationError(f"--output must be a file that ends in .md, .html or .json, got {output}")
    from agentic_compression.cli.comparison_report import as_html, as_markdown, print_comparison
    from agentic_compression.storage import write_atomically
    from agentic_compression.study import validate_data
    from agentic_compression.study.comparison import compare_sides

    names = baseline, candidate
    config, bench = _configuration(names, dataset, seed, limit, benchmark_dir)
    data, _ = validate_data(config, bench)
    data = _only(data, tasks)
    as_studied = all(option is None for option in (dataset, limit, benchmark_dir, tasks)) and _of_one_study(*names)
    stored = _stored(names, bench) if as_studied else (None, None)
    first, second = (_side(*one, config, bench) for one in zip(names, stored, strict=True))
    bootstrapped = config if seed is None else config.model_copy(update={"seed": seed})
    compared = compare_sides(bootstrapped, data, first, second, bench)
    if output is not None:
        texts = {".md": as_markdown, ".html": as_html, ".json": lambda item: item.model_dump_json(indent=2) + "\n"}
        write_atomically(output, texts[output.suffix](compared))
    if as_json:
        typer.echo(compared.model_dump_json(indent=2))
        return
    print_comparison(compared)
    if output is not None:
        typer.echo(f"written to {output}")


def _configuration(
    names: tuple[str, str], dataset: str | None, seed: int | None, limit: int | None, benchmark_dir: Path | None
) -> tuple[StudyConfig, Workbench]:
    """How to measure: as the study did where one side is an episode and nothing else was asked for.

    An episode's items are those of its study, whatever the seed: another seed could ask what it was calibrated on.
    """
    study = next((match["study"] for name in names if (match := _episode(name))), None)
    studied = None if study is None else _config_of(study)
    if studied is None or dataset is not None:
        chosen = seed or 0 if studied is None else studied.seed
        return prepare(names[0], dataset or "demo", chosen, limit=limit, benchmark_dir=benchmark_dir)
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.study import open_workbench

    shared_supervisor().start()
    changes: dict[str, object] = {}
    if limit is not None:
        changes["evaluation"] = studied.evaluation.model_copy(update={"limit": limit})
    if benchmark_dir is not None:
        changes["benchmark_dir"] = str(benchmark_dir.resolve())
    return studied.model_copy(update=changes), open_workbench()


def _config_of(study: str) -> StudyConfig:
    from agentic_compression.records import StudyConfig
    from agentic_compression.settings import get_settings
    from agentic_compression.study.workbench import study_folder

    file = study_folder(get_settings(), study) / "study.json"
    if not file.is_file():
        known = ", ".join(sorted(found.parent.name for found in get_settings().experiments.glob("*/study.json")))
        raise ConfigurationError(f"no study {study!r} (looked for {file}); studies here: {known or 'none yet'}")
    return StudyConfig.model_validate_json(file.read_text(encoding="utf-8"))


def _stored(names: tuple[str, str], bench: Workbench) -> tuple[Evaluation | None, Evaluation | None]:
    """Two episodes' evaluations as they were recorded, on the report items where both were asked them."""
    places = [(match["study"], int(match["episode"])) for name in names if (match := _episode(name))]
    first, second = (bench.history.evaluation(*place) for place in places)
    reports = [bench.history.report(*place) for place in places]
    if first is None or second is None or reports[0] is None or reports[1] is None:
        return first, second
    return _on_report_items(first, reports[0]), _on_report_items(second, reports[1])


def _on_report_items(evaluation: Evaluation, report: Report) -> Evaluation:
    return evaluation.model_copy(
        update={
            "accuracy": report.accuracy,
            "benchmarks": report.benchmarks,
            "divergence": report.divergence,
            "split": "report",
        }
    )


def _side(name: str, evaluation: Evaluation | None, config: StudyConfig, bench: Workbench) -> Side:
    """What the user named, with the evaluation that is to be taken as it was recorded.

    Raises:
        ConfigurationError: when there is no such episode, or nothing of it is left.
    """
    from agentic_compression.study.comparison import Side

    match = _episode(name)
    if match is None:
        own = config.model_copy(update={"model": name})
        return Side(name=name, checkpoint=as_it_is(own, bench).checkpoint)
    study, episode = match["study"], int(match["episode"])
    record = next((item for item in bench.history.records(study) if item.episode == episode), None)
    if record is None:
        raise ConfigurationError(f"no episode {episode} in study {study!r}; see: acf frontier {study}")
    if record.checkpoint is None:
        raise ConfigurationError(f"{name} has nothing to compare: it {record.status} ({record.error or 'no reason'})")
    checkpoint = record.checkpoint if Path(record.checkpoint.path).is_dir() else None
    if checkpoint is None and evaluation is None:
        raise ConfigurationError(f"the checkpoint of {name} is gone; make it again: acf rebuild {study} {episode}")
    return Side(name=f"{name} ({record.strategy.label or 'baseline'})", checkpoint=checkpoint, evaluation=evaluation)


def _episode(name: str) -> re.Match[str] | None:
    return None if Path(name).exists() else _EPISODE.fullmatch(name)


def _of_one_study(*names: str) -> bool:
    matches = [_episode(name) for name in names]
    return all(matches) and len({match["study"] for match in matches if match}) == 1


def _only(data: DatasetSpec, wanted: str | None) -> DatasetSpec:
    """The dataset with these tasks alone.

    Raises:
        ConfigurationError: when it has no such task.
    """
    if wanted is None:
        return data
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    held = [task.name for task in data.tasks]
    if unknown := sorted(set(names) - set(held)) or ([] if names else ["none"]):
        raise ConfigurationError(f"--tasks must be of {', '.join(held)}, got {', '.join(unknown)}")
    return data.model_copy(update={"tasks": tuple(task for task in data.tasks if task.name in names)})
