"""Every planner on every recorded table: who finds the frontier in fewer episodes?

    python -m benchmarks.planners [--seeds 50] [--planners greybox,tpe] [--tables demo] [--language-seeds 20] [--again]

Each replay sees another half of a table's items; all planners see the same half, the same given strategies and the same
frozen reference point. Printed are the hypervolume after 5, 10, 20 and 40 episodes as a share of the table's best, the
episodes to 90 and 95 % of it, the mean share over the episodes after the given ones (area under the curve), and the
paired difference of that area to the default planner's with a bootstrap interval over seeds. Gaussian processes take
seconds a proposal: they follow over fewer seeds and 20 episodes, the default search beside them cut to the same. Then
the hybrid planner with a language model: scripted stand-ins, marked as such, over fewer seeds, and what was recorded of
real ones (``benchmarks.planners.transcripts``), each beside the same search without it. Courses are kept in
``benchmarks/data/courses.json`` by the content of table, planner and settings, so that only what changed is replayed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from agentic_compression.planning import load_planner
from agentic_compression.planning.interface import Planner
from agentic_compression.planning.seeds import SEEDS
from agentic_compression.records import content_digest
from agentic_compression.storage import write_atomically
from benchmarks.planners import transcripts
from benchmarks.planners.language import CODE as LANGUAGE_CODE
from benchmarks.planners.language import STAND_INS, play_stand_in
from benchmarks.planners.replay import Course, Replay, play
from benchmarks.planners.stock import STOCK, stock_planner
from benchmarks.planners.table import DATA, Table

OURS = "greybox"
SLOW, SLOW_EPISODES = ("gp", "stock-gp-2", "stock-gp"), 20
PLANNERS = (OURS, "random", "nsga2", "tpe", "bandit", "pbt", *(name for name in STOCK if name not in SLOW))
COURSES = DATA / "courses.json"
TABLES = ("demo", "stories260k", "demo_deep")
EPISODES = 40
_CODE = Path(__file__).resolve().parent.parent.parent / "agentic_compression" / "planning"
_RESAMPLES = 4000
Courses = dict[str, dict[str, list[int]]]


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--planners", default=",".join(PLANNERS))
    parser.add_argument("--tables", default=",".join(name for name in TABLES if (DATA / f"{name}.json").exists()))
    parser.add_argument("--given", type=int, default=SEEDS, help="strategies that all planners are given")
    parser.add_argument(
        "--slow", default=",".join(SLOW[:2]), help="Gaussian processes, over fewer seeds; empty for none"
    )
    parser.add_argument("--slow-seeds", type=int, default=10)
    parser.add_argument("--language-seeds", type=int, default=20, help="of the stand-ins for a language model")
    parser.add_argument("--stand-ins", default=",".join(STAND_INS), help="empty for none")
    parser.add_argument("--again", action="store_true", help="replay what is kept, too")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="write the mean curves to this .html file")
    options = parser.parse_args()
    names, tables = options.planners.split(","), options.tables.split(",")
    kept = json.loads(COURSES.read_text()) if COURSES.exists() else {}
    replayed = partial(_replayed, options=options, kept=kept)
    found = {
        (table, name): replayed(table, name, range(options.seeds), again=options.again)
        for table, name in product(tables, names)
    }
    for table in tables:
        _print(table, {name: found[table, name] for name in names}, options.given, EPISODES)
    slow, few = [name for name in options.slow.split(",") if name], range(options.slow_seeds)
    for table in tables if slow else ():
        ways = {name: replayed(table, name, few, again=options.again and name != OURS) for name in (OURS, *slow)}
        cut = {name: [Course(course.volumes[: SLOW_EPISODES + 1], []) for course in way] for name, way in ways.items()}
        _print(table, cut, options.given, SLOW_EPISODES)
    stand_ins, seeds = [name for name in options.stand_ins.split(",") if name], range(options.language_seeds)
    for table in tables:
        ways = {OURS: replayed(table, OURS, seeds, again=False)}
        ways |= {name: replayed(table, name, seeds, again=options.again) for name in stand_ins}
        _print_language(table, ways, options.given)
    if options.plot:
        from benchmarks.planners.plot import plot

        plot(found, options.plot)


def _replayed(
    table: str, name: str, seeds: Sequence[int], *, options: argparse.Namespace, kept: Courses, again: bool
) -> list[Course]:
    """A planner's courses on a table by seed; what is not kept, or all of it again, is replayed and kept."""
    key = _key(table, name, options.given)
    known = {} if again else dict(kept.get(key, {}))
    missing = [seed for seed in seeds if str(seed) not in known]
    began = time.monotonic()
    if missing:
        with ProcessPoolExecutor(options.jobs) as pool:
            ways = pool.map(_one, [(table, name, seed, options.given) for seed in missing])
            known |= {str(seed): way for seed, way in zip(missing, ways, strict=True)}
        kept[key] = known
        write_atomically(COURSES, _compact(_current(kept, options.tables.split(","), options.given)))
    told = f"{len(missing)} replays in {time.monotonic() - began:.0f} s" if missing else "kept"
    print(f"{table} {name}: {told}", flush=True)
    return [Course([v / 1e4 for v in known[str(seed)]], []) for seed in seeds]


def _one(work: tuple[str, str, int, int]) -> list[int]:
    """One replay: the hypervolume after each episode in ten-thousandths of the table's best."""
    name, planner, seed, given = work
    table, episodes = Table.read(DATA / f"{name}.json"), SLOW_EPISODES if planner in SLOW else EPISODES
    with threadpool_limits(1):  # the processes are many, the matrices small
        replay = Replay(table, seed, given=given)
        if planner in STAND_INS:
            course = play_stand_in(replay, planner, EPISODES)
        else:
            course = play(replay, _planner(planner), episodes, table.header.spec)
    volumes = course.volumes + [course.volumes[-1]] * (episodes + 1 - len(course.volumes))
    return [round(1e4 * volume) for volume in volumes]


def _planner(name: str) -> Planner:
    return stock_planner(name) if name in STOCK else load_planner(name)


def _key(table: str, planner: str, given: int) -> str:
    """Of everything that a course follows from: table, the planner's code, the library's version, the settings."""
    shared = ("grid.py", "seeds.py", "encoding.py", "mirror.py", "reward.py", "moves.py", "nearest.py")
    own = {
        OURS: sorted((_CODE / "greybox").glob("*.py")),
        "random": [_CODE / "random_planner.py"],
        **{name: [_CODE / "bandit.py", _CODE / "pbt.py"] for name in ("bandit", "pbt")},
        **{name: [Path(__file__).parent / "stock.py"] for name in STOCK},
        **{name: [*sorted((_CODE / "greybox").glob("*.py")), *LANGUAGE_CODE] for name in STAND_INS},
    }.get(planner, [_CODE / "optuna_planner.py"])
    parts = [path for path in [*(_CODE / name for name in shared), *own] if path.exists()]
    code = content_digest([path.read_text() for path in parts])
    data = content_digest((DATA / f"{table}.json").read_text())
    return f"{table} {planner} {given} {content_digest([data, code, version('optuna'), EPISODES])}"


def _current(
    kept: dict[str, dict[str, list[int]]], tables: Sequence[str], given: int
) -> dict[str, dict[str, list[int]]]:
    """Without courses that no present planner or table would give."""
    keys = {_key(table, name, given) for table, name in product(tables, (*PLANNERS, *SLOW, *STAND_INS))}
    replaced = {key.rsplit(" ", 1)[0] for key in keys}
    return {key: way for key, way in kept.items() if key in keys or key.rsplit(" ", 1)[0] not in replaced}


def _compact(kept: Courses) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(kept[key])}" for key in sorted(kept)) + "\n}\n"


def _print(table: str, courses: dict[str, list[Course]], given: int, episodes: int) -> None:
    seeds, shown = len(next(iter(courses.values()))), [n for n in (5, 10, 20, 40) if n <= episodes]
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
    print(f"{'planner':{width}} {'5':>6} {'10':>6} {'20':>6} {'40':>6} {'area':>7}  {OURS} alone ahead by [95 %]")
    alone = np.array([course.area(given) for course in courses[OURS]])
    for name, ways in courses.items():
        at = " ".join(f"{statistics.fmean(course.volumes[n] for course in ways):6.3f}" for n in (5, 10, 20, 40))
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
