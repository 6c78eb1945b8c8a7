"""Courses of replays: played in several processes, kept by what they follow from, and played again to check them."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

from threadpoolctl import threadpool_limits

from agentic_compression.planning import load_planner
from agentic_compression.records import content_digest
from agentic_compression.storage import write_atomically
from benchmarks.planners.language import CODE as LANGUAGE_CODE
from benchmarks.planners.language import STAND_INS, play_stand_in
from benchmarks.planners.replay import Course, Replay, play
from benchmarks.planners.stock import STOCK, stock_planner
from benchmarks.planners.table import DATA, Table

__all__ = ["COURSES", "OURS", "SLOW", "Courses"]

OURS = "greybox"
SLOW = ("gp", "stock-gp-2", "stock-gp")
"""Gaussian processes, which take seconds a proposal and minutes when told five objectives."""
COURSES = DATA / "courses.json"
_HERE = Path(__file__).resolve().parent
_PACKAGE = _HERE.parent.parent / "agentic_compression"
_PLANNING = _PACKAGE / "planning"
_SHARED = (
    *(_HERE / name for name in ("replay.py", "spaces.py", "table.py")),
    *(_PACKAGE / name for name in ("pareto.py", "evaluation/intervals.py", "evaluation/split.py")),
    *(_PLANNING / name for name in ("grid.py", "seeds.py", "encoding.py", "mirror.py", "reward.py", "moves.py",
                                    "nearest.py")),
)  # fmt: skip
_GREYBOX = (
    *sorted((_PLANNING / "greybox").glob("*.py")),
    *(_PACKAGE / "checkpoints" / name for name in ("gguf_bits.py", "gguf_types.py")),
)
_POPULATION = (_PLANNING / "bandit.py", _PLANNING / "pbt.py")
_OWN: dict[str, tuple[Path, ...]] = {
    OURS: _GREYBOX,
    "random": (_PLANNING / "random_planner.py",),
    "bandit": _POPULATION,
    "pbt": _POPULATION,
    **dict.fromkeys(STOCK, (_HERE / "stock.py",)),
    **dict.fromkeys(STAND_INS, (*_GREYBOX, *LANGUAGE_CODE)),
}
_OPTUNA = (_PLANNING / "optuna_planner.py",)


class Courses:
    """What every planner came to, by table and seed: kept, or played now.

    Args:
        given: strategies that every planner is given.
        episodes: of a course.
        jobs: processes that play at once.
        again: play what is kept, too.
    """

    def __init__(self, given: int, episodes: int, jobs: int, *, again: bool = False) -> None:
        self._given, self._episodes, self._jobs, self._again = given, episodes, jobs, again
        self._kept: dict[str, dict[str, list[int]]] = json.loads(COURSES.read_text()) if COURSES.exists() else {}
        self._new: set[str] = set()

    def get(self, table: str, name: str, seeds: Sequence[int]) -> list[Course]:
        """A planner's courses on a table, one a seed; what is missing is played and kept."""
        key = self._key(table, name)
        known = self._kept.get(key, {})
        missing = [seed for seed in seeds if str(seed) not in known or (self._again and (key not in self._new))]
        began = time.monotonic()
        if missing:
            self._new.add(key)
            known |= {str(seed): way for seed, way in zip(missing, self._play(table, name, missing), strict=True)}
            self._keep(key, known)
        told = f"{len(missing)} replays in {time.monotonic() - began:.0f} s" if missing else "kept"
        print(f"{table} {name}: {told}", flush=True)
        return [Course([volume / 1e4 for volume in known[str(seed)]], []) for seed in seeds]

    def check(self, table: str, name: str, count: int) -> tuple[int, list[int]]:
        """Play some of the kept courses again; returns how many, and the seeds whose course came out otherwise."""
        key = self._key(table, name)
        known = self._kept.get(key, {})
        seeds = [] if key in self._new else random.SystemRandom().sample(sorted(known), min(count, len(known)))
        played = self._play(table, name, [int(seed) for seed in seeds])
        return len(seeds), [int(seed) for seed, way in zip(seeds, played, strict=True) if way != known[seed]]

    def _play(self, table: str, name: str, seeds: Sequence[int]) -> list[list[int]]:
        if not seeds:
            return []
        with ProcessPoolExecutor(self._jobs) as pool:
            return list(pool.map(_one, [(table, name, seed, self._given, self._episodes) for seed in seeds]))

    def _key(self, table: str, name: str) -> str:
        """Of everything that a course follows from: table, the planner's code, the library's version, the settings."""
        code = content_digest([path.read_text() for path in (*_SHARED, *_OWN.get(name, _OPTUNA))])
        data = content_digest((DATA / f"{table}.json").read_text())
        return f"{table} {name} {self._given} {self._episodes} {content_digest([data, code, version('optuna')])}"

    def _keep(self, key: str, known: dict[str, list[int]]) -> None:
        """In the place of what the same planner came to with other code; read again, for others may write as well."""
        stored = json.loads(COURSES.read_text()) if COURSES.exists() else {}
        replaced = key.rsplit(" ", 1)[0]
        merged = {old: way for old, way in stored.items() if old.rsplit(" ", 1)[0] != replaced}
        self._kept = {**merged, key: known}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(self._kept[name])}" for name in sorted(self._kept))
        write_atomically(COURSES, "{\n" + lines + "\n}\n")


def _one(work: tuple[str, str, int, int, int]) -> list[int]:
    """One replay: the hypervolume after each episode in ten-thousandths of the table's best."""
    name, planner, seed, given, episodes = work
    table = Table.read(DATA / f"{name}.json")
    with threadpool_limits(1):  # the processes are many, the matrices small
        replay = Replay(table, seed, given=given)
        if planner in STAND_INS:
            course = play_stand_in(replay, planner, episodes)
        else:
            chosen = stock_planner(planner) if planner in STOCK else load_planner(planner)
            course = play(replay, chosen, episodes, table.header.spec)
    volumes = course.volumes + [course.volumes[-1]] * (episodes + 1 - len(course.volumes))
    return [round(1e4 * volume) for volume in volumes]
