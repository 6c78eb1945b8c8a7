"""Every planner on every recorded table: who finds the frontier in fewer episodes?

    python -m benchmarks.planners [--seeds 50] [--planners greybox,tpe] [--tables demo] [--episodes 40] [--again]

Each replay sees another half of a table's items; all planners see the same half, the same given strategies and the same
frozen reference point. Printed are the hypervolume after 5, 10, 20 and 40 episodes as a share of the table's best, the
episodes to 90 and 95 % of it, the mean share over the episodes after the given ones (area under the curve), and the
paired difference of that area to the default planner's with a bootstrap interval over seeds. A Gaussian process takes
seconds a proposal: it follows over fewer seeds. Then the hybrid planner with a language model: scripted stand-ins,
marked as such, over fewer seeds, and what was recorded of real ones (``benchmarks.planners.transcripts``), each beside
the same search without it.

Courses are kept in ``benchmarks/data/courses.json`` by the content of table, planner and settings, so that only what
changed is replayed. Of the kept ones, ``--check`` of every planner and table, drawn anew each time, are replayed and
compared.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from agentic_compression.planning.seeds import SEEDS
from benchmarks.planners import transcripts
from benchmarks.planners.courses import OURS, SLOW, Courses
from benchmarks.planners.language import STAND_INS
from benchmarks.planners.replay import Course
from benchmarks.planners.stock import STOCK
from benchmarks.planners.table import DATA, Table

PLANNERS = (OURS, "random", "nsga2", "tpe", "bandit", "pbt", *(name for name in STOCK if name not in SLOW))
TABLES = ("demo", "stories260k", "demo_deep")
_RESAMPLES = 4000
_SHOWN = (5, 10, 20, 40, 80)


def main() -> None:
    """Replay and print."""
    options = _options()
    names, tables = options.planners.split(","), options.tables.split(",")
    slow, stand_ins = ([name for name in text.split(",") if name] for text in (options.slow, options.stand_ins))
    courses = Courses(options.given, options.episodes, options.jobs, again=options.again)
    found = {(table, name): courses.get(table, name, range(options.seeds)) for table, name in product(tables, names)}
    for table in tables:
        _print(table, {name: found[table, name] for name in names}, options.given, options.episodes)
    for table in tables if slow else ():
        ways = {name: courses.get(table, name, range(options.slow_seeds)) for name in (OURS, *slow)}
        _print(table, ways, options.given, options.episodes)
    for table in tables:
        ways = {name: courses.get(table, name, range(options.language_seeds)) for name in (OURS, *stand_ins)}
        _print_language(table, ways, options.given)
    if options.check:
        _check(courses, tables, names, options.check)
    if options.plot:
        from benchmarks.planners.plot import plot

        plot(found, options.plot)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--planners", default=",".join(PLANNERS))
    parser.add_argument("--tables", default=",".join(name for name in TABLES if (DATA / f"{name}.json").exists()))
    parser.add_argument("--given", type=int, default=SEEDS, help="strategies that all planners are given")
    parser.add_argument("--slow", default="stock-gp-2", help=f"of {', '.join(SLOW)}; empty for none")
    parser.add_argument("--slow-seeds", type=int, default=10)
    parser.add_argument("--language-seeds", type=int, default=5, help="of the stand-ins for a language model")
    parser.add_argument("--stand-ins", default=",".join(STAND_INS), help="empty for none")
    parser.add_argument("--again", action="store_true", help="replay what is kept, too")
    parser.add_argument("--check", type=int, default=1, help="kept courses to replay of every planner and table")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="write the mean curves to this .html file")
    return parser.parse_args()


def _check(courses: Courses, tables: Sequence[str], names: Sequence[str], count: int) -> None:
    """Whether what is kept is what comes out here."""
    found = {(table, name): courses.check(table, name, count) for table, name in product(tables, names)}
    played = sum(number for number, _ in found.values())
    odd = [f"{table} {name}, seed {seed}" for (table, name), (_, seeds) in found.items() for seed in seeds]
    print(f"\n{played} of the kept courses replayed: {played - len(odd)} came out the same")
    if odd:
        print(f"otherwise: {'; '.join(odd)} (other arithmetic may tip a choice; --again replays all)")


def _print(table: str, courses: dict[str, list[Course]], given: int, episodes: int) -> None:
    seeds, shown = len(next(iter(courses.values()))), [n for n in _SHOWN if n <= episodes]
    print(f"\n{table}: {seeds} seeds, {episodes} episodes, {given} given strategies, shares of the table's best")
    print(f"{'planner':12} {' '.join(f'{n:>6}' for n in shown)} {'to 90 %':>8} {'to 95 %':>8} {'area':>7}  "
          f"{OURS} ahead by [95 %]")  # fmt: skip
    ours = [course.area(given) for course in courses.get(OURS, [])]
    for name, ways in sorted(courses.items(), key=lambda pair: -statistics.fmean(c.area(given) for c in pair[1])):
        at = [statistics.fmean(course.volumes[n] for course in ways) for n in shown]
        to = [_median_to(ways, share, episodes) for share in (0.90, 0.95)]
        area = [course.area(given) for course in ways]
        ahead = ""
        if ours and name != OURS:
            difference = np.array(ours) - np.array(area)
            low, high = _bootstrap(difference)
            ahead = f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        print(f"{name:12} " + " ".join(f"{value:6.3f}" for value in at) + f" {to[0]:>8} {to[1]:>8} "
              f"{statistics.fmean(area):7.4f}  {ahead}")  # fmt: skip


def _print_language(table: str, courses: dict[str, list[Course]], given: int) -> None:
    """The search alone always; stand-ins, which are no language models; and what was recorded of real ones."""
    seeds = len(courses[OURS])
    print(f"\n{table}, with a language model: {seeds} seeds; stand-ins are scripts, no language models")
    width = max(len(name) for name in courses) + len(" (stand-in)")
    shown = [n for n in _SHOWN if n < len(courses[OURS][0].volumes)]
    print(f"{'planner':{width}} {' '.join(f'{n:>6}' for n in shown)} {'area':>7}  {OURS} alone ahead by [95 %]")
    alone = np.array([course.area(given) for course in courses[OURS]])
    for name, ways in courses.items():
        at = " ".join(f"{statistics.fmean(course.volumes[n] for course in ways):6.3f}" for n in shown)
        area = np.array([course.area(given) for course in ways])
        low, high = _bootstrap(alone - area)
        ahead = "the ablation" if name == OURS else f"{(alone - area).mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        label = f"{OURS} alone" if name == OURS else f"{name} (stand-in)"
        print(f"{label:{width}} {at} {area.mean():7.4f}  {ahead}")
    recorded = transcripts.read_all([table])
    print("\n".join(transcripts.lines(recorded, Table.read(DATA / f"{table}.json"))) or "no recorded transcripts")


def _median_to(ways: Sequence[Course], share: float, episodes: int) -> str:
    reached = [course.episodes_to(share) for course in ways]
    numbers = sorted(episodes + 1 if number is None else number for number in reached)
    median = statistics.median(numbers)
    return f">{episodes}" if median > episodes else f"{median:g}"


def _bootstrap(difference: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, float]:
    picks = np.random.default_rng(0).integers(0, len(difference), size=(_RESAMPLES, len(difference)))
    low, high = np.percentile(difference[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
