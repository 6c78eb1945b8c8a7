"""Does a study need fewer episodes when memory holds an earlier one of another model?

    python -m benchmarks.planners.transfer [--seeds 30] [--pairs demo:demo_deep,demo_deep:demo]

For every pair and seed the default planner first carries out a study on the first table. What comes of it is remembered
and recalled as a real study would (``agentic_compression.memory``), weighted by how alike the two situations are. Then
it carries out a study on the second table, once with that memory and once without. Nothing is given to either, and both
see the same half of the items. Printed are the episodes to 90 % of the final hypervolume of the study without memory,
the hypervolume after 1 to 8 episodes as a share of the table's best, and the paired differences over seeds with
bootstrap intervals.
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import permutations

import numpy as np
from threadpoolctl import threadpool_limits

from agentic_compression.memory import experiences_of, recalled_from
from agentic_compression.planning import load_planner
from agentic_compression.records import Recalled, StudyConfig
from benchmarks.planners.replay import Replay, course_of, episodes_of
from benchmarks.planners.table import DATA, Table

EARLIER, EPISODES, SHARE = 20, 40, 0.9
_SHOWN = (1, 2, 3, 4, 6, 8)
_RESAMPLES = 4000
Outcome = tuple[list[float], list[float]]
"""Hypervolumes after each episode without and with memory, as shares of the table's best."""


def main() -> None:
    """Replay and print."""
    known = [name for name in ("demo", "stories260k", "demo_deep") if (DATA / f"{name}.json").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--pairs", default=",".join(f"{a}:{b}" for a, b in permutations(known, 2)))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    for pair in options.pairs.split(","):
        source, target = pair.split(":")
        with ProcessPoolExecutor(options.jobs) as pool:
            outcomes = list(pool.map(partial(both, source, target), range(options.seeds)))
        _print(source, target, outcomes)


def both(source: str, target: str, seed: int) -> Outcome:
    """The same study without memory and with that of an earlier one."""
    planner, table = load_planner("greybox"), Table.read(DATA / f"{target}.json")
    with threadpool_limits(1):
        recalled = earlier(source, Replay(table, seed, given=0), seed)
        plain, remembering = (
            course_of(replay, tuple(episodes_of(replay, planner, EPISODES, table.header.spec))).volumes
            for replay in (Replay(table, seed, given=0), Replay(table, seed, given=0, recalled=recalled))
        )
    return plain, remembering


def earlier(source: str, replay: Replay, seed: int) -> tuple[Recalled, ...]:
    """What memory recalls, before this replay, of a study of the source that it carried out."""
    table = Table.read(DATA / f"{source}.json")
    header = table.header
    assert header.spec is not None, "a table says what model it is of"
    former = Replay(table, 10_000 + seed, given=0)
    records = tuple(episodes_of(former, load_planner("greybox"), EARLIER, header.spec))
    config = StudyConfig(model=header.model, dataset=header.dataset, name="earlier")
    known = experiences_of(records, header.spec, config, header.dataset, tuple(header.items))
    return recalled_from(known, replay.situation(replay.table.header.spec, [], EPISODES))


def _print(source: str, target: str, outcomes: list[Outcome]) -> None:
    to = np.array([[_episodes_to(course, SHARE * plain[-1]) for course in (plain, told)] for plain, told in outcomes])
    print(f"\n{source} remembered, then {target}: {len(outcomes)} seeds")
    print(f"{'':16} {'episodes to 90 %':>18} " + " ".join(f"{n:>6}" for n in _SHOWN))
    for column, name in enumerate(("without memory", "with memory")):
        at = [statistics.fmean(outcome[column][n] for outcome in outcomes) for n in _SHOWN]
        told = f"{to[:, column].mean():.1f} (median {np.median(to[:, column]):g})"
        print(f"{name:16} {told:>18} " + " ".join(f"{value:6.3f}" for value in at))
    saved = to[:, 0] - to[:, 1]
    low, high = _bootstrap(saved)
    print(f"episodes saved: {saved.mean():+.2f} [{low:+.2f}, {high:+.2f}]")
    gained = np.array([statistics.fmean(told[1:11]) - statistics.fmean(plain[1:11]) for plain, told in outcomes])
    low, high = _bootstrap(gained)
    print(f"area over the first 10 episodes: {gained.mean():+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)


def _episodes_to(volumes: list[float], level: float) -> int:
    return next((number for number, volume in enumerate(volumes) if volume >= level), len(volumes))


def _bootstrap(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, float]:
    picks = np.random.default_rng(0).integers(0, len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
