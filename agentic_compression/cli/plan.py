"""``acf plan``: from a wish in natural language to a plan of experiments, and with ``--run`` to a finished study."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from agentic_compression.cli.run import INTERRUPTED, NO_SOLUTION

if TYPE_CHECKING:
    from rich.console import Console

    from agentic_compression.agent import CompressionPlan, PlanItem, Reflection, Wish
    from agentic_compression.records import FinalResults

__all__ = ["plan"]

_MARKS = {"pending": " ", "running": "…", "done": "✓", "failed": "✗", "skipped": "-"}


def plan(
    objective: Annotated[str, typer.Argument(help='Your wish, for example "smallest model losing under 1 point".')],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Hub id, checkpoint folder, models:/NAME@ALIAS, or 'demo'.")
    ],
    dataset: Annotated[
        str, typer.Option("--dataset", "-d", help="Benchmark name(s), a .jsonl/.csv/.parquet file, or 'demo'.")
    ],
    carbon_budget_g: Annotated[
        float | None, typer.Option(help="End the study before it emits more CO2e than this, in grams.")
    ] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", "-e", min=1, help="Compressed episodes; 6 unless the wish says.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Carry the plan out; the same again goes on.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --run: do not ask whether this is what you meant.")] = (
        False
    ),
    constraint: Annotated[
        list[str] | None, typer.Option("--constraint", help='Besides, for example "accuracy_drop<=0.02"; repeatable.')
    ] = None,
    name: Annotated[str | None, typer.Option(help="Study name; from model and dataset when left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of planner, methods and item choice.", min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="Items a task: a seeded sample.", min=1)] = None,
    benchmark_dir: Annotated[Path | None, typer.Option(help="Folder with local copies of benchmarks.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="Read the wish by rules, even where there is a key.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Read OBJECTIVE, plan the experiments that serve it, and say what they are expected to take and give.

    With --run they are carried out as a study. Without --yes it asks before; where nobody can be asked it prints the
    plan and stops there.

    Examples:

      acf plan "smallest model losing under 1 point, at most 50 g CO2" -m demo -d demo

      acf plan "at least 2x faster, accuracy loss below 2%" -m demo -d demo --run --yes

      acf plan "最小的模型,準確率下降不超過 2%" -m demo -d demo --carbon-budget-g 20
    """
    from agentic_compression.agent import plan_compression, resume_plan
    from agentic_compression.cli.live import wide_console
    from agentic_compression.records import StudyConfig
    from agentic_compression.settings import get_settings
    from agentic_compression.study.workbench import study_folder

    settings, console = get_settings(), wide_console(quiet=as_json)
    base = StudyConfig.model_validate(
        {
            "model": model,
            "dataset": dataset,
            "name": name or "",
            "seed": seed,
            "constraints": constraint or (),
            "benchmark_dir": str(benchmark_dir.resolve()) if benchmark_dir else None,
            "evaluation": {"limit": limit},
        }
    )
    made = plan_compression(
        model, objective, carbon_budget_g, dataset=dataset, episodes=episodes, base=base, ask=not rules
    )
    made = resume_plan(made, study_folder(settings, made.study.name)) if run else made
    _print_wish(console, made.wish)
    _print_plan(console, made)
    if not run or not (yes or _confirmed(as_json)):
        if as_json:
            typer.echo(made.model_dump_json(indent=2))
        console.print(f"nothing was run; to carry it out: {_again(objective, model, dataset)} --run --yes", style="dim")
        return
    done, results, reflection = _carry_out(made, as_json=as_json)
    if as_json:
        typer.echo(_as_json(done, results, reflection))
    _print_plan(console, done)
    if reflection is not None:
        _print_reflection(console, reflection)
    if results.termination_reason == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if reflection is None or not reflection.served:
        raise typer.Exit(NO_SOLUTION)


def _confirmed(as_json: bool) -> bool:
    """Whether the user says that this is what was meant; nobody is asked where nobody can answer."""
    if as_json or not sys.stdin.isatty():
        return False
    return typer.confirm("Is this what you meant? Carry it out?", err=True)


def _carry_out(made: CompressionPlan, *, as_json: bool) -> tuple[CompressionPlan, FinalResults, Reflection | None]:
    from agentic_compression.agent import carry_out_plan, frontier_of, reflect_and_improve
    from agentic_compression.cli.ending import alias_moves, known_moves
    from agentic_compression.cli.live import LiveView
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.study import open_workbench

    shared_supervisor().start()
    view = LiveView(made.study, detailed=True, quiet=as_json)
    view.phase("starting: history, child processes")
    bench = open_workbench()

    def told(plan: CompressionPlan, item: PlanItem) -> None:
        if item.status == "running":
            view.say(f"item {item.number} of {len(plan.items)}: {item.title} ({item.agent}), {_expected(item)}")
        elif item.status == "skipped":
            view.say(f"item {item.number} skipped: {item.reason}")
        elif item.outcome is not None and item.outcome.errors:
            view.say(f"  against the estimate: {_errors(item)}")

    known = known_moves(bench, made.study)
    with view.attached(bench):
        done, results = carry_out_plan(made, bench, told)
    view.final(results, bench.folder(made.study.name), moves=alias_moves(bench, made.study, known))
    if results.termination_reason == "interrupted":
        return done, results, None
    document = frontier_of(bench.folder(made.study.name))
    return done, results, reflect_and_improve(document, made.wish.text, bench=bench)


def _print_wish(console: Console, wish: Wish) -> None:
    reader = "a language model" if wish.reader == "language model" else "rules"
    table = Table("in your words", "understood as", title=f"objective, read by {reader}", title_justify="left")
    for quote, meaning in wish.understood:
        table.add_row(escape(quote), escape(meaning))
    for part in wish.not_understood:
        table.add_row(f"[yellow]{escape(part)}[/]", "[yellow]not understood: it changes nothing[/]")
    console.print(table)
    if wish.note:
        console.print(escape(wish.note), style="dim", highlight=False)
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in wish.weights.items())
    console.print(f"weights among what satisfies the constraints: {weights}", highlight=False)


def _print_plan(console: Console, made: CompressionPlan) -> None:
    study = made.study
    budget = "" if study.carbon_budget_kg is None else f", at most {1000 * study.carbon_budget_kg:g} g CO2e"
    time_budget = "" if study.budget_hours is None else f", at most {study.budget_hours:g} h"
    title = f"plan of study {study.name}: {study.model} on {study.dataset}{budget}{time_budget}"
    table = Table(title=escape(title), title_justify="left")
    for heading in ("", "item", "by", "strategy", "seconds", "g CO2e", "size of baseline", "points lost", "chance"):
        table.add_column(heading, justify="left" if heading in {"", "item", "by", "strategy"} else "right")
    for item in made.items:
        table.add_row(*_row(item))
    console.print(table)
    for text in made.warnings:
        console.print(f"[yellow]{escape(text)}[/]", highlight=False)
    if made.seconds > 0:
        console.print(
            f"still to do: about {made.seconds:.0f} s and {made.grams:.3g} g CO2e (estimated)", highlight=False
        )


def _row(item: PlanItem) -> tuple[str, ...]:
    from agentic_compression.cli.live import brief

    label = escape(brief(item.strategy.label)) if item.strategy else ""
    if item.outcome is not None and item.outcome.measured:
        found = item.outcome
        drop = f"{100 * found.measured['accuracy_drop']:.2f}"
        size = f"{found.measured['size_ratio']:.1%}" if "size_ratio" in found.measured else ""
        return (_MARKS[item.status], item.title, item.agent, label or escape(found.strategy),
                f"{found.seconds:.0f}", f"{found.grams:.3g}", size, drop, "measured")  # fmt: skip
    outlook, estimate = item.estimate.outlook, item.estimate
    costs = (f"{estimate.seconds:.0f}", f"{estimate.grams:.3g}") if estimate.seconds else ("", "")
    if item.outcome is not None:
        costs = f"{item.outcome.seconds:.0f}", f"{item.outcome.grams:.3g}"
    if outlook is None or not item.is_open:
        return _MARKS[item.status], item.title, item.agent, label, *costs, "", escape(item.reason[:60]), ""
    size = "{:.1%} [{:.1%}, {:.1%}]".format(*outlook.size_ratio)
    drop = "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * value for value in outlook.accuracy_drop))
    return _MARKS[item.status], item.title, item.agent, label, *costs, size, drop, f"{outlook.chance:.0%}"


def _expected(item: PlanItem) -> str:
    estimate = item.estimate
    return f"expected {estimate.seconds:.0f} s, {estimate.grams:.3g} g CO2e ({estimate.basis})"


def _errors(item: PlanItem) -> str:
    assert item.outcome is not None
    said = []
    for name, error in item.outcome.errors.items():
        held = item.outcome.within.get(name)
        inside = "" if held is None else f" {'inside' if held else 'outside'} its interval"
        said.append(
            f"accuracy_drop {100 * error:+.2f} points{inside}"
            if name == "accuracy_drop"
            else f"{name} {error:+.0%}{inside}"
        )
    return ", ".join(said)


def _print_reflection(console: Console, reflection: Reflection) -> None:
    console.print(f"[bold]{escape(reflection.summary)}[/]", highlight=False)
    for lesson in reflection.lessons:
        console.print(f"  learned: {escape(lesson)}", highlight=False)
    for finding in reflection.findings[:5]:
        console.print(
            f"  memory: {' | '.join(finding.methods)} {escape(finding.claim)} ({finding.held} of {finding.n}, "
            f"confidence {finding.confidence:.2f})",
            highlight=False,
        )
    for item in reflection.next:
        label = escape(item.strategy.label)
        console.print(f"  next ({item.proposed_by}): {label}: {escape(item.why)}", highlight=False)


def _as_json(done: CompressionPlan, results: FinalResults, reflection: Reflection | None) -> str:
    import json

    parts: dict[str, Any] = {
        "plan": done.model_dump(mode="json"),
        "results": results.model_dump(mode="json"),
        "reflection": reflection.model_dump(mode="json") if reflection else None,
    }
    return json.dumps(parts, indent=2, ensure_ascii=False)


def _again(objective: str, model: str, dataset: str) -> str:
    import shlex

    return escape(f"acf plan {shlex.quote(objective)} -m {shlex.quote(model)} -d {shlex.quote(dataset)}")
