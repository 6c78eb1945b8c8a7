"""Commands that do one piece of a study by hand: compress, evaluate, rebuild."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentic_compression.cli.by_hand import as_it_is, compressed, prepare
from agentic_compression.errors import AcfError, ConfigurationError, StrategyError

if TYPE_CHECKING:
    from agentic_compression.records import Evaluation, Strategy

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

    config, bench = prepare(model, dataset, seed)
    config = config.model_copy(update={"calibration": calibration_source(calibration)})
    outcome = compressed(config, bench, parsed)
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
    tasks: Annotated[str | None, typer.Option(help="Only these of the dataset's tasks, separated by commas.")] = None,
    benchmark_dir: Annotated[Path | None, typer.Option(help="Folder with local copies of benchmarks.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the item choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure MODEL on DATASET: accuracy, perplexity, latency, memory, size, energy.

    Examples:

      acf evaluate -m demo -d demo

      acf evaluate -m models:/demo--demo@smallest -d gsm8k --benchmark-dir ./benchmarks --limit 50 --json

      acf evaluate -m ./small -d arc=2,hellaswag --tasks arc_challenge,hellaswag --benchmark-dir ./benchmarks
    """
    from agentic_compression.study import evaluate as measure
    from agentic_compression.study import validate_data

    config, bench = prepare(model, dataset, seed, limit=limit, benchmark_dir=benchmark_dir, tasks=tasks)
    data, _ = validate_data(config, bench)
    outcome = measure(config, data, as_it_is(config, bench), bench)
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
    outcome = compressed(config, open_workbench(), Strategy.model_validate_json(recipe.read_text()))
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
        f"({latency.prompt_tokens}+{latency.new_tokens} tokens, {latency.runs} runs"
        f"{'' if latency.stable else '; times had not settled'}); "
        f"{energy.joules_per_request.value:.3g} J a request, {energy.source}: {energy.method}; "
        f"{evaluation.environment.device}, {evaluation.environment.threads} threads",
        soft_wrap=True,
    )
    for line in _speed_and_memory(evaluation):
        console.print(line, soft_wrap=True)


def _speed_and_memory(evaluation: Evaluation) -> Iterator[str]:
    """Gaps between tokens, several requests at once, the distance to the machine's ceilings, what memory is made of."""
    latency, memory, roofline = evaluation.latency, evaluation.memory, evaluation.roofline
    if latency.inter_token_ms is not None and latency.inter_token_p95_ms is not None:
        yield f"between tokens {latency.inter_token_ms.value:.2f} ms, 95 % within {latency.inter_token_p95_ms:.2f} ms"
    if evaluation.throughput:
        rates = ", ".join(f"{item.decode_tokens_per_s:.0f} with {item.batch}" for item in evaluation.throughput)
        yield f"decoding tokens/s: {rates} at once"
    if roofline is not None:
        yield (
            f"decoding reads {roofline.decode_bytes_per_s / 1e9:.1f} GB/s, {roofline.of_bandwidth:.0%} of what this "
            f"machine can; prefill does {roofline.prefill_flops_per_s / 1e9:.1f} GFLOP/s, {roofline.of_peak:.0%} of it"
        )
    if memory.kv_cache_bytes is not None and memory.activation_bytes is not None:
        yield (
            f"memory: weights {memory.weights_bytes / 1e6:.1f} MB, cache {memory.kv_cache_bytes / 1e6:.2f} MB "
            f"({memory.kv_cache_bytes_per_token or 0:,} bytes a token), the rest {memory.activation_bytes / 1e6:.1f} MB"
        )


def _parse(text: str, max_stages: int) -> Strategy:
    from agentic_compression.methods import read_strategy, search_space

    strategy = read_strategy(text)
    space = search_space(max_stages)
    if problem := space.problem_with(strategy):
        raise StrategyError(problem)
    return space.complete(strategy)
