"""Commands that do one piece of a study by hand: compress, evaluate, rebuild."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentic_compression.errors import AcfError, CompressionError, ConfigurationError, StrategyError

if TYPE_CHECKING:
    from agentic_compression.records import CompressionOutcome, Evaluation, Strategy, StudyConfig
    from agentic_compression.study import Workbench

__all__ = ["compress", "evaluate", "rebuild"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Hub id, checkpoint folder, models:/NAME@ALIAS, or 'demo'.")]


def compress(
    model: Model,
    strategy: Annotated[
        str,
        typer.Option(help='Stages ("wanda:sparsity=0.3 | gptq:bits=4"), a template, or a .yaml/.json file of them.'),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the checkpoint into this new folder.")
    ] = None,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Where calibration text comes from.")] = "demo",
    calibration: Annotated[
        str,
        typer.Option(help="Text to calibrate and train on: train, wikitext, or a .jsonl or .txt file."),
    ] = "train",
    seed: Annotated[int, typer.Option(help="Seed of the methods.")] = 0,
    as_json: Json = False,
) -> None:
    """Compress MODEL with one strategy.

    Examples:

      acf compress -m demo --strategy "gptq:bits=4,group_size=64"

      acf compress -m demo --strategy "prune:wanda,sparsity=0.3 | gptq:bits=4" -o ./small

      acf compress -m demo --strategy "gguf:type=Q4_K_M"

      acf compress -m demo --strategy "drop_channels:share=0.2 | distill if accuracy_drop>0.01 | gptq:bits=4"

      acf compress -m demo --strategy balanced_quality
    """
    from agentic_compression.checkpoints import new_folder

    if output is not None and output.exists():
        raise ConfigurationError(f"--output {output} exists already; choose a new folder")
    parsed = _parse(strategy, 8)
    if parsed.is_baseline:
        raise StrategyError("a strategy has at least one stage, got none; see: acf methods")
    from agentic_compression.cli.study_file import calibration_source

    config, bench = _prepare(model, dataset, seed)
    config = config.model_copy(update={"calibration": calibration_source(calibration)})
    outcome = _compressed(config, bench, parsed)
    assert outcome.checkpoint is not None
    place = Path(outcome.checkpoint.path)
    if output is not None:
        with new_folder(output) as unfinished:
            shutil.copytree(place, unfinished, dirs_exist_ok=True)
        place = output
        moved = outcome.checkpoint.model_copy(update={"path": str(output.resolve())})
        outcome = outcome.model_copy(update={"checkpoint": moved})
    if as_json:
        typer.echo(outcome.model_dump_json(indent=2))
        return
    for line in outcome.decisions:
        typer.echo(line)
    assert outcome.checkpoint is not None
    size = outcome.checkpoint.size_bytes / 1e6
    typer.echo(
        f"compressed in {outcome.seconds:.1f} s: {size:.2f} MB in {place}; next: acf evaluate -m {place} -d {dataset}"
    )


def evaluate(
    model: Model,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Benchmark name(s), data file, or 'demo'.")] = "demo",
    limit: Annotated[int | None, typer.Option(help="Items a task: a seeded sample.")] = None,
    benchmark_dir: Annotated[Path | None, typer.Option(help="Folder with local copies of benchmarks.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the item choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure MODEL on DATASET: accuracy, perplexity, latency, memory, size, energy.

    Examples:

      acf evaluate -m demo -d demo

      acf evaluate -m models:/demo--demo@smallest -d gsm8k --benchmark-dir ./benchmarks --limit 50 --json
    """
    from agentic_compression.study import evaluate as measure
    from agentic_compression.study import validate_data

    config, bench = _prepare(model, dataset, seed, limit=limit, benchmark_dir=benchmark_dir)
    data, _ = validate_data(config, bench)
    outcome = measure(config, data, _as_it_is(config, bench), bench)
    if outcome.evaluation is None:
        raise AcfError(f"the evaluation {outcome.status}: {outcome.error}")
    if as_json:
        typer.echo(outcome.evaluation.model_dump_json(indent=2))
        return
    print_evaluation(outcome.evaluation)


def rebuild(
    study: Annotated[str, typer.Argument(help="Study name.")],
    episode: Annotated[int, typer.Argument(help="Episode number.", min=0)],
) -> None:
    """Make the checkpoint of an episode again from its recipe.

    Example:

      acf rebuild demo-demo 3
    """
    from agentic_compression.records import Strategy, StudyConfig
    from agentic_compression.settings import get_settings
    from agentic_compression.study import open_workbench
    from agentic_compression.study.workbench import study_folder

    folder = study_folder(get_settings(), study)
    recipe = folder / f"episode_{episode:03d}" / "strategy.json"
    if not recipe.is_file() or not (folder / "study.json").is_file():
        raise ConfigurationError(
            f"no episode {episode} in study {study!r} (looked for {recipe}); see: acf analyze {folder}"
        )
    config = StudyConfig.model_validate_json((folder / "study.json").read_text())
    outcome = _compressed(config, open_workbench(), Strategy.model_validate_json(recipe.read_text()))
    assert outcome.checkpoint is not None
    typer.echo(f"episode {episode} of {study} is in {outcome.checkpoint.path} (digest {outcome.checkpoint.digest})")


def print_evaluation(evaluation: Evaluation) -> None:
    """Objectives with their intervals, task scores, and how they were measured."""
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    console = wide_console()
    table = Table("objective", "value", "95 % interval")
    for name, value in evaluation.objectives.model_dump().items():
        low, high = evaluation.intervals[name]
        table.add_row(name, f"{value:.5g}", f"{low:.5g} – {high:.5g}")
    if evaluation.perplexity is not None:
        perplexity = evaluation.perplexity.perplexity
        table.add_row("perplexity", f"{perplexity.value:.4f}", f"{perplexity.low:.4f} – {perplexity.high:.4f}")
    console.print(table)
    scores = Table("task", "metric", "score", "n", "few-shot", "harness")
    for score in evaluation.benchmarks:
        row = (
            score.task,
            score.metric,
            f"{score.score.value:.4f}",
            str(score.score.n),
            str(score.few_shot),
            score.harness,
        )
        scores.add_row(*row)
    console.print(scores)
    latency, energy = evaluation.latency, evaluation.energy
    console.print(
        f"{latency.throughput_tokens_per_s:.1f} tokens/s, first token {latency.ttft_ms.value:.1f} ms "
        f"({latency.prompt_tokens}+{latency.new_tokens} tokens, {latency.runs} runs); "
        f"{energy.joules_per_request.value:.3g} J a request, {energy.source}: {energy.method}; "
        f"{evaluation.environment.device}, {evaluation.environment.threads} threads",
        soft_wrap=True,
    )


def _prepare(
    model: str, dataset: str, seed: int, *, limit: int | None = None, benchmark_dir: Path | None = None
) -> tuple[StudyConfig, Workbench]:
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.records import EvaluationSettings, StudyConfig

    shared_supervisor().start()
    from agentic_compression.study import open_workbench

    config = StudyConfig(
        model=model,
        dataset=dataset,
        name="by-hand",
        seed=seed,
        benchmark_dir=str(benchmark_dir.resolve()) if benchmark_dir else None,
        evaluation=EvaluationSettings(limit=limit),
    )
    return config, open_workbench()


def _parse(text: str, max_stages: int) -> Strategy:
    from agentic_compression.methods import read_strategy, search_space

    strategy = read_strategy(text)
    space = search_space(max_stages)
    if problem := space.problem_with(strategy):
        raise StrategyError(problem)
    return space.complete(strategy)


def _as_it_is(config: StudyConfig, bench: Workbench) -> CompressionOutcome:
    """The model itself: a folder of any form that a runtime loads, or what the Hub has under its name."""
    from agentic_compression.checkpoints import checkpoint_ref
    from agentic_compression.records import BASELINE, CompressionOutcome
    from agentic_compression.study.model_source import readable_model

    folder = Path(readable_model(config, bench))
    if not folder.is_dir():
        return _compressed(config, bench, BASELINE)
    reference = checkpoint_ref(folder, BASELINE.key, shared=True)
    return CompressionOutcome(status="succeeded", checkpoint=reference, cached=True)


def _compressed(config: StudyConfig, bench: Workbench, strategy: Strategy) -> CompressionOutcome:
    """Compress outside any study; raises what an episode would have recorded as its error."""
    from agentic_compression.records import EpisodePlan
    from agentic_compression.study import compress as apply
    from agentic_compression.study import infer_model_spec
    from agentic_compression.study.episode import dataset_of

    spec = infer_model_spec(config, bench)
    plan = EpisodePlan(
        study=config.name, episode=0, strategy=strategy, planner="by hand", source="user", seed=config.seed
    )
    outcome = apply(config, spec, dataset_of(config, bench.settings), plan, bench)
    if outcome.checkpoint is None:
        raise CompressionError(f"compression {outcome.status}: {outcome.error}")
    return outcome
