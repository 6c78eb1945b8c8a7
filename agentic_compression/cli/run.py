"""``acf run``: a whole study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentic_compression.errors import ConfigurationError

if TYPE_CHECKING:
    from agentic_compression.cli.ending import AliasMove
    from agentic_compression.cli.live import LiveView
    from agentic_compression.records import FinalResults, StudyConfig

__all__ = ["run"]

NO_SOLUTION = 3
INTERRUPTED = 130


def run(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Hub id, checkpoint folder, models:/NAME@ALIAS, or 'demo'."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "-d", help="Benchmark name(s), a .jsonl/.csv/.parquet file, or 'demo'."),
    ] = None,
    episodes: Annotated[
        str | None,
        typer.Option("--episodes", "-e", help="Compressed episodes to reach; +N: N more than now, converged or not."),
    ] = None,
    budget_hours: Annotated[float | None, typer.Option(help="End after this much work, in hours.")] = None,
    carbon_budget_kg: Annotated[float | None, typer.Option(help="End after this much CO2e, in kg.")] = None,
    objective: Annotated[str, typer.Option(help="Your wish in natural language, kept with the study.")] = "",
    constraint: Annotated[
        list[str] | None, typer.Option("--constraint", help='For example "accuracy_drop<=0.02"; repeatable.')
    ] = None,
    planner: Annotated[str | None, typer.Option(help="auto, hybrid, llm, tpe, random, … (see docs/status.md).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of planner, methods and item choice.")] = None,
    name: Annotated[str | None, typer.Option(help="Study name; from model and dataset when left out.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Study file (configs/studies/*.yaml); options override it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Items a task: a seeded sample.")] = None,
    benchmark_dir: Annotated[Path | None, typer.Option(help="Folder with local copies of benchmarks.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these of the dataset's tasks, separated by commas.")] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Text to calibrate and train on: train, wikitext, or a .jsonl or .txt file.")
    ] = None,
    screening: Annotated[
        bool | None,
        typer.Option("--screening/--no-screening", help="Reject early what cannot change the frontier; on by default."),
    ] = None,
    max_stages: Annotated[int | None, typer.Option(help="Stages a strategy may have.")] = None,
    detailed: Annotated[bool, typer.Option("-i", "--interactive", help="Live view with every stage.")] = False,
    show_spec: Annotated[bool, typer.Option("--show-spec", help="Print the model's specification first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run; writes no numbers.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print final_results.json, new episodes and moved aliases.")
    ] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Let the model's own code run.")] = False,
) -> None:
    """Search for the best compressed versions of MODEL on DATASET.

    Interrupt it at any moment; the same command goes on where it stopped. A study ends at its number of episodes, its
    budgets or its target, when the planner has nothing left to try, and when it has converged. --episodes +N goes on
    after convergence; everything else ends it as before.

    Examples:

      acf run --model demo --dataset demo --episodes 5 --seed 1

      acf run -m ./my-model -d questions.jsonl --constraint "accuracy_drop<=0.02" --budget-hours 2

      acf run -m demo -d gsm8k --benchmark-dir ./benchmarks --limit 50

      acf run --config configs/studies/demo.yaml --episodes +1
    """
    from agentic_compression.cli.by_hand import task_names
    from agentic_compression.cli.study_file import calibration_source

    options: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "budget_hours": budget_hours,
        "carbon_budget_kg": carbon_budget_kg,
        "objective": objective or None,
        "constraints": constraint or None,
        "planner": planner,
        "seed": seed,
        "name": name,
        "benchmark_dir": str(benchmark_dir.resolve()) if benchmark_dir else None,
        "tasks": task_names(tasks) or None,
        "calibration": calibration_source(calibration) if calibration else None,
        "max_stages": max_stages,
        "screening": screening,
        "trust_remote_code": trust_remote_code or None,
    }
    study = _study(config, {key: value for key, value in options.items() if value is not None}, limit, episodes)
    if dry_run:
        from agentic_compression.cli.preview import preview

        preview(study)
        return
    _carry_out(study, episodes, detailed=detailed, show_spec=show_spec, as_json=as_json)


def _study(path: Path | None, options: dict[str, Any], limit: int | None, episodes: str | None) -> StudyConfig:
    """The study file with the options laid over it, validated."""
    from agentic_compression.cli.study_file import read_study
    from agentic_compression.records import StudyConfig
    from agentic_compression.study.naming import with_name

    values = {**(read_study(path) if path else {}), **options}
    if limit is not None:
        evaluation = values.get("evaluation") or {}
        if not isinstance(evaluation, dict):
            raise ConfigurationError(
                f"evaluation in {path} must be a mapping such as {{limit: 50}}, got {evaluation!r}"
            )
        values["evaluation"] = {**evaluation, "limit": limit}
    if episodes is not None and not episodes.startswith("+"):
        values["episodes"] = _count(episodes)
    for key in ("model", "dataset"):
        if key not in values:
            raise ConfigurationError(f"--{key} is missing; give --model and --dataset, or a study file with --config")
    return with_name(StudyConfig.model_validate(values))


def _count(text: str) -> int:
    digits = text.removeprefix("+")
    if not digits.isdigit() or int(digits) < 1:
        raise ConfigurationError(f"--episodes takes a whole number of at least 1, or +N for N more, got {text!r}")
    return int(digits)


def _carry_out(study: StudyConfig, episodes: str | None, *, detailed: bool, show_spec: bool, as_json: bool) -> None:
    from agentic_compression.cli.live import LiveView
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.planning import select_planner
    from agentic_compression.settings import get_settings

    settings = get_settings()
    _, note = select_planner(study.planner, settings.openai_api_key is not None)
    view = LiveView(study, detailed=detailed, quiet=as_json)
    view.say(note)
    from agentic_compression.study.preflight import preflight

    spec = preflight(study, settings)
    # Its imports take about as long as ZenML's and MLflow's below, on another core.
    shared_supervisor().start()
    from agentic_compression import orchestration

    view.phase("starting: local stack, history")
    orchestration.prepare_environment(settings)
    from agentic_compression.study import infer_model_spec, open_workbench
    from agentic_compression.study.loop import run_study
    from agentic_compression.study.workbench import bootstrap_lock

    with bootstrap_lock(settings):
        orchestration.ensure_stack(settings)
    bench = open_workbench()
    with bench.lock(study.name):
        bench.history.open_study(study)
    from agentic_compression.cli.ending import alias_moves, final_json, known_moves

    records, known = bench.history.records(study.name), known_moves(bench, study)
    further = episodes is not None and episodes.startswith("+")
    if episodes is not None and further:
        done = sum(record.episode > 0 for record in records)
        study = study.model_copy(update={"episodes": done + _count(episodes)})
        view.study = study
    if show_spec:
        from agentic_compression.cli.inspect import print_spec

        print_spec(spec or infer_model_spec(study, bench), to_stderr=as_json)
    with view.attached(bench):
        results = run_study(study, bench, orchestration.run_episode, when_converged=not further)
    moves, added = alias_moves(bench, study, known), results.episodes_run - len(records)
    if as_json:
        typer.echo(json.dumps(final_json(results, added, moves), indent=2))
    _finish(study, results, view, added, moves)


def _finish(study: StudyConfig, results: FinalResults, view: LiveView, added: int, moves: list[AliasMove]) -> None:
    """What happened, where it is and what to do next; then the exit code."""
    from agentic_compression.settings import get_settings

    if results.planner_note:
        view.say(results.planner_note)
    view.final(results, get_settings().experiments / study.name, added, moves)
    if results.termination_reason == "interrupted":
        raise typer.Exit(INTERRUPTED)
    compressed = any(solution.meets_constraints and solution.episode > 0 for solution in results.solutions)
    if not compressed and (study.constraints or results.episodes_by_status.get("succeeded", 0) <= 1):
        raise typer.Exit(NO_SOLUTION)
