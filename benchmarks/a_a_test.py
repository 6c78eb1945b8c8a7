"""How often the paired statistics are wrong: two equally good models, planted drops, and one real model beside itself.

    python -m benchmarks.a_a_test [--draws 2000] [--model FOLDER] [--checkpoint NAME=FOLDER ...] [--output FILE.md]

The first table draws comparisons without a true difference and counts how often the verdict says there is one. The
second plants a drop and asks at the number of items that ``items_for`` names. The third, only with ``--model``, asks
the demo's items of one real checkpoint several times over (other batch sizes, threads, item seeds), and of others.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np

from agentic_compression.evaluation.paired import paired_difference, sign_flip_test, verdict_of
from agentic_compression.evaluation.paired_planning import items_for
from agentic_compression.records import Verdict
from benchmarks.noise_models import NOISE_MODELS, Draw, flipped

DROPS = ((0.01, 0.01), (0.01, 0.02), (0.01, 0.05), (0.01, 0.15), (0.02, 0.10), (0.05, 0.10))


def judged(draw: Draw, known: dict[tuple[float, ...], tuple[Verdict, float, float]]) -> tuple[Verdict, float, float]:
    """Verdict and interval of a draw; equal counts of equal differences are judged once."""
    tasks, weights = draw
    key = tuple(
        float(value)
        for task in tasks
        for value in (len(task.sizes), (task.differences > 0).sum(), (task.differences < 0).sum())
    )
    binary = all(set(np.unique(task.differences)) <= {-1.0, 0.0, 1.0} and (task.sizes == 1).all() for task in tasks)
    if binary and key in known:
        return known[key]
    difference = paired_difference(tasks, weights, seed=0)
    open_anyway = difference.low <= 0 <= difference.high  # whatever the test says, which takes longer
    verdict = verdict_of(difference, 1.0 if open_anyway else sign_flip_test(tasks, weights, seed=0))
    found = verdict, difference.low, difference.high
    if binary:
        known[key] = found
    return found


def false_verdicts(draws: int, seed: int = 0) -> list[str]:
    """A table of how often equally good models are called different, and how often intervals hold the truth."""
    lines = ["| noise | draws | false worse | false better | interval holds 0 |", "|---|---|---|---|---|"]
    for place, (name, model) in enumerate(NOISE_MODELS.items()):
        generator = np.random.default_rng([seed, place])
        known: dict[tuple[float, ...], tuple[Verdict, float, float]] = {}
        found = [judged(model(generator), known) for _ in range(draws)]
        verdicts = Counter(verdict for verdict, _, _ in found)
        held = sum(low <= 0 <= high for _, low, high in found) / draws
        print(name, file=sys.stderr, flush=True)
        lines.append(
            f"| {name} | {draws:,} | {verdicts['worse'] / draws:.2%} | {verdicts['better'] / draws:.2%} | {held:.1%} |"
        )
    return lines


def planted_drops(draws: int, seed: int = 1) -> list[str]:
    """A table of how often a planted drop is found at the planned number of items."""
    lines = [
        "| drop | answers that change | items planned | found | called better | interval holds the drop |",
        "|---|---|---|---|---|---|",
    ]
    for place, (drop, discordance) in enumerate(DROPS):
        generator, items = np.random.default_rng([seed, place]), items_for(drop, discordance)
        known: dict[tuple[float, ...], tuple[Verdict, float, float]] = {}
        found = [judged(flipped(generator, items, discordance, drop), known) for _ in range(draws)]
        verdicts = Counter(verdict for verdict, _, _ in found)
        held = sum(low <= -drop <= high for _, low, high in found) / draws
        lines.append(
            f"| {drop:.1%} | {discordance:.1%} | {items:,} | {verdicts['worse'] / draws:.1%} | "
            f"{verdicts['better'] / draws:.2%} | {held:.1%} |"
        )
    return lines


def real_models(model: Path, checkpoints: dict[str, Path], limit: int | None) -> list[str]:
    """A table of one checkpoint beside itself under other batch sizes, threads and item seeds, and beside others."""
    from agentic_compression.evaluation.comparison import compare_scores

    baseline = _scores(model, limit, batch_size=64)
    runs = {
        "itself again": _scores(model, limit, batch_size=64),
        "itself, batches of 16": _scores(model, limit, batch_size=16),
        "itself, 2 threads": _scores(model, limit, batch_size=64, threads=2),
    }
    runs |= {name: _scores(folder, limit, batch_size=64) for name, folder in checkpoints.items()}
    lines = [
        "| candidate | items | right to wrong | wrong to right | difference, points | 95 % interval | p | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = {name: compare_scores(baseline, scores) for name, scores in runs.items()}
    half = (limit or 600) // 2
    rows["itself, other items asked (two seeds, those in common)"] = compare_scores(
        _scores(model, half, batch_size=64, seed=1), _scores(model, half, batch_size=64, seed=2)
    )
    for name, compared in rows.items():
        flips, difference = compared.flips, compared.accuracy
        assert flips is not None
        lines.append(
            f"| {name} | {flips.n:,} | {flips.right_to_wrong} | {flips.wrong_to_right} | "
            f"{100 * difference.value:+.2f} | [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}] | "
            f"{compared.p_value:.3g} | {compared.verdict} |"
        )
    return lines


def _scores(folder: Path, limit: int | None, *, batch_size: int, threads: int = 1, seed: int = 0):  # type: ignore[no-untyped-def]
    from agentic_compression.data import resolve_dataset
    from agentic_compression.evaluation.quality import score_tasks
    from agentic_compression.records import EvaluationSettings
    from agentic_compression.resources import configs_dir
    from agentic_compression.runtimes import open_runtime
    from agentic_compression.settings import get_settings

    dataset = resolve_dataset("demo", settings=get_settings(), benchmark_dir=None, limit=None, seed=0)
    settings = EvaluationSettings(limit=limit, batch_size=batch_size, threads=threads, seed=seed)
    with closing(open_runtime(folder, "cpu", threads)) as runtime:
        return score_tasks(runtime, dataset, settings, str(configs_dir() / "tasks"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="0 leaves the drawn comparisons out")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    command = shlex.join(["python", "-m", f"benchmarks.{Path(__file__).stem}", *sys.argv[1:]])
    lines = ["# Two equally good models, and planted drops", "", f"`{command}`", ""]
    if options.draws:
        lines += [
            "Without a true difference (a verdict other than *indistinguishable* is false):",
            "",
            *false_verdicts(options.draws),
            "",
            "With a planted drop, at the number of items that `items_for` plans for 80 % power:",
            "",
            *planted_drops(options.draws),
            "",
        ]
    if options.model is not None:
        folders = {name: Path(folder) for name, _, folder in (text.partition("=") for text in options.checkpoint)}
        title = "The demo's items, real checkpoints beside the uncompressed one:"
        lines += [title, "", *real_models(options.model, folders, options.limit)]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
