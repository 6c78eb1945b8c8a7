"""What early rejection saves and what it loses, and how much the best of many is flattered; replayed from a table.

Run: ``python -m benchmarks.rungs [TABLE] [--orders 50] [--splits 200] [--items-cost 10]``. The table
(``python -m benchmarks.planners.record``) holds every strategy of a space, measured completely. Each replay splits the
items anew, takes the candidates in another random order and leads each through the very code that decides in a study;
what a rung asks for is read from the table, and so is how many seconds it took.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.evaluation.contest import Contest
from agentic_compression.evaluation.intervals import proportion
from agentic_compression.evaluation.rungs import ItemName, Screened, screen
from agentic_compression.evaluation.split import side_of
from agentic_compression.pareto import hypervolume, loss_rows, reference_point
from agentic_compression.records import Estimate, KlEvidence, Objectives, Rival, ScreeningPlan
from agentic_compression.study.screening import LEAST_RIVALS
from benchmarks.planners.table import DATA, Row, Table, unpack_answers

DEFAULT = DATA / "demo.json"
SHARE = 0.5


class Pool:
    """The measured candidates."""

    def __init__(self, path: Path, items_cost: float = 1.0) -> None:
        table = Table.read(path)
        self.items, self.vocabulary, self.items_cost = table.header.items, table.header.vocabulary, items_cost
        rows = [row for row in table.rows if not row.error]
        self.baseline = Candidate(table.baseline, self)
        self.candidates = [Candidate(row, self) for row in rows[1:]]
        self.failed = len(table.rows) - len(rows)

    def side(self, split: str, seed: int) -> dict[str, tuple[str, ...]]:
        """Ids by task of one side of a split."""
        return {
            task: tuple(name for name in names if side_of(f"{task}\0{name}", seed, SHARE) == split)
            for task, names in self.items.items()
        }


class Candidate:
    """One row, read instead of measured; a ``rungs.Candidate``."""

    def __init__(self, row: Row, pool: Pool) -> None:
        self.strategy = row.strategy
        self._row, self._items_cost = row, pool.items_cost
        answers = unpack_answers(row.answers)
        self._scores = {
            (task, name): float(answer)
            for task, names in pool.items.items()
            for name, answer in zip(names, answers[task], strict=True)
        }
        self.asked: set[str] = set()
        self.size_gb: float = row.objectives.model_size_gb
        self.weights_gb: float = row.weights_bytes / 1e9
        self.memory_floor_gb: float = 0.8 * min(self.size_gb, self.weights_gb)
        self.engine = "llama.cpp" if "gguf" in self.strategy else "transformers"
        self.vocabulary = pool.vocabulary

    def glance(self) -> tuple[float, float]:
        """The recorded one."""
        assert self._row.glance is not None
        self.asked.add("latency_floor_ms")
        return self._row.glance[:2]

    def glance_at_memory(self) -> float:
        """The recorded first repetition."""
        assert self._row.glance is not None
        self.asked.add("memory_floor_gb")
        return self._row.glance[2]

    def serve(self) -> tuple[Estimate, Estimate]:
        """Latency and CO2."""
        self.asked.add("latency_ms")
        return self._cost("latency_ms"), self._cost("co2_grams")

    def diverge(self) -> Estimate | None:
        """The recorded divergence."""
        self.asked.add("kl")
        return self._row.kl

    def remember(self) -> Estimate:
        """The recorded memory."""
        self.asked.add("memory_gb")
        return self._cost("memory_gb")

    def answer(self, items: Sequence[ItemName]) -> list[float]:
        """The recorded answers."""
        return [self._scores[item] for item in items]

    def scores(self, items: dict[str, tuple[str, ...]]) -> dict[str, tuple[float, ...]]:
        """By task, in the order of the items."""
        return {task: tuple(self._scores[task, name] for name in names) for task, names in items.items()}

    def objectives(self, items: dict[str, tuple[str, ...]]) -> Objectives:
        """All five, the accuracy over these items; tasks weigh the same."""
        values = self.scores(items)
        accuracy = statistics.fmean(statistics.fmean(scores) for scores in values.values())
        return self._row.objectives.model_copy(update={"accuracy": accuracy})

    def intervals(self, items: dict[str, tuple[str, ...]]) -> dict[str, tuple[float, float]]:
        """Of the accuracy over these items (as one proportion) and of the costs."""
        pooled = proportion([int(score) for scores in self.scores(items).values() for score in scores])
        costs = {name: self._cost(name) for name in ("latency_ms", "memory_gb", "co2_grams")}
        return {"accuracy": (pooled.low, pooled.high), **{name: (e.low, e.high) for name, e in costs.items()}}

    def seconds(self, asked: int, total: int, *, in_full: bool) -> float:
        """Of an evaluation that asked so many of the search items; the recorded items cover both sides."""
        of_items = self._of_items() * asked / total
        if in_full:
            return self._rest() + of_items
        seconds = self._row.seconds
        measured = sum(spent for name, spent in seconds.items() if name.partition("@")[0] in self.asked)
        return seconds["load"] + measured + of_items

    def full_seconds(self) -> float:
        """Of an evaluation on the search side with nothing rejected."""
        return self._rest() + self._of_items()

    def _of_items(self) -> float:
        """Seconds of the search side's items, as if each took ``items_cost`` times what it took."""
        return self._all_items() * SHARE * self._items_cost

    def _rest(self) -> float:
        """Everything but items: load, costs, divergence, perplexity, throughput."""
        return self._row.seconds["evaluate"] - self._all_items()

    def _all_items(self) -> float:
        return sum(spent for name, spent in self._row.seconds.items() if name.startswith("accuracy@"))

    def _cost(self, name: str) -> Estimate:
        value, low, high = self._row.values[name]
        return Estimate(value=value, low=low, high=high, n=12)


@dataclass
class Replay:
    """One order's outcome."""

    volume: float
    report_volume: float
    items: float
    seconds: float
    by_rung: dict[str, int]
    lost: list[str]


def replay(pool: Pool, seed: int, plan_changes: dict[str, Any] | None = None, count: int | None = None) -> Replay:
    """Lead all candidates, or so many drawn ones, through the rungs in one random order."""
    draw = random.Random(seed)
    order = list(pool.candidates)
    draw.shuffle(order)
    order = order[:count]
    items, kept = pool.side("search", seed), pool.side("report", seed)
    total = sum(len(names) for names in items.values())
    measured, evidence = [pool.baseline], list[KlEvidence]()
    asked = float(total)
    spent = pool.baseline.full_seconds()
    by_rung: dict[str, int] = {}
    rejected: list[Candidate] = []
    for candidate in order:
        candidate.asked = set()
        plan = plan_of(measured, items, evidence).model_copy(update=plan_changes or {})
        found = screen(plan, candidate, items, dict.fromkeys(items, 1.0), seed)
        asked += found.asked
        spent += candidate.seconds(found.asked, total, in_full=found.rejection is None)
        evidence += evidence_of(found)
        stop = "measured in full" if found.rejection is None else _stop(found)
        by_rung[stop] = by_rung.get(stop, 0) + 1
        (measured if found.rejection is None else rejected).append(candidate)
    everything = [pool.baseline, *order]
    volumes = [_share(pool, measured, everything, side) for side in (items, kept)]
    return Replay(
        volume=volumes[0],
        report_volume=volumes[1],
        items=asked / (total * len(everything)),
        seconds=spent / sum(candidate.full_seconds() for candidate in everything),
        by_rung=by_rung,
        lost=_lost(pool, measured, rejected, items),
    )


def plan_of(
    measured: Sequence[Candidate], items: dict[str, tuple[str, ...]], evidence: Sequence[KlEvidence]
) -> ScreeningPlan:
    """What a study would hand to the next candidate."""
    rivals = [
        Rival(
            episode=number,
            objectives=candidate.objectives(items),
            intervals=candidate.intervals(items),
            engine=candidate.engine,
            weights_gb=candidate.weights_gb,
        )
        for number, candidate in enumerate(measured)
    ]
    contest = Contest(rivals, 0.0)
    paired = [
        rival.model_copy(update={"scores": candidate.scores(items)})
        if rival.episode == 0 or contest.stands(rival.objectives)
        else rival
        for rival, candidate in zip(rivals, measured, strict=True)
    ]
    return ScreeningPlan(
        rivals=tuple(paired), reject=len(measured) >= LEAST_RIVALS, items=items, evidence=tuple(evidence)
    )


def evidence_of(found: Screened) -> list[KlEvidence]:
    """The divergence and the accuracy's upper end, where both were read."""
    kl = [reading.value for reading in found.readings if reading.quantity == "kl"]
    highs = [reading.high for reading in found.readings if reading.quantity == "accuracy"]
    return [KlEvidence(kl=kl[-1], accuracy=highs[-1])] if kl and highs else []


def winners_curse(pool: Pool, splits: int, best_of: int = 40) -> tuple[list[float], list[float]]:
    """Accuracy of the best of many on the search side less its own on the report side, and the same of one at random.

    Returns:
        One difference a split: of the best of ``best_of``, and of a candidate drawn without looking.
    """
    best, drawn = [], []
    for seed in range(splits):
        draw = random.Random(seed)
        chosen = draw.sample(pool.candidates, min(best_of, len(pool.candidates)))
        sides = [pool.side("search", seed), pool.side("report", seed)]
        figures = [[candidate.objectives(side).accuracy for side in sides] for candidate in chosen]
        search, report = max(figures)
        best.append(search - report)
        search, report = draw.choice(figures)
        drawn.append(search - report)
    return best, drawn


def main() -> None:
    """Print both studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", metavar="TABLE", nargs="?", type=Path, default=DEFAULT)
    parser.add_argument("--orders", type=int, default=50)
    parser.add_argument("--candidates", type=int, help="so many, drawn anew for each order; all when left out")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument(
        "--items-cost", type=float, default=1.0, help="count an item's seconds so many times (a larger task): estimated"
    )
    options = parser.parse_args()
    pool = Pool(options.pool, options.items_cost)
    print(f"{len(pool.candidates)} candidates, {pool.failed} that could not be made; {options.orders} random orders")
    replays = [replay(pool, seed, count=options.candidates) for seed in range(options.orders)]
    for name in ("volume", "report_volume", "items", "seconds"):
        values = sorted(getattr(found, name) for found in replays)
        print(
            f"{_NAMES[name]:52} mean {statistics.fmean(values):6.1%}  median {statistics.median(values):6.1%}  "
            f"5 % {values[int(0.05 * len(values))]:6.1%}  95 % {values[int(0.95 * (len(values) - 1))]:6.1%}"
        )
    reached = sum(found.volume >= 0.95 for found in replays) / len(replays)
    cheap = sum(found.items <= 0.15 for found in replays) / len(replays)
    print(f"orders with at least 95 % of the hypervolume: {reached:.0%}; with at most 15 % of the items: {cheap:.0%}")
    stops: dict[str, float] = {}
    for found in replays:
        for stop, count in found.by_rung.items():
            stops[stop] = stops.get(stop, 0.0) + count / len(replays)
    print("candidates by where they stopped:", ", ".join(f"{stop} {n:.1f}" for stop, n in sorted(stops.items())))
    wrong = [name for found in replays for name in found.lost]
    screened = sum(sum(found.by_rung.values()) for found in replays)
    print(f"rejected although they would have added 1 % to what was measured in the end: {len(wrong) / screened:.2%}")
    for name in sorted(set(wrong), key=lambda name: -wrong.count(name))[:8]:
        print(f"  {wrong.count(name):4} times {name}")
    best, drawn = winners_curse(pool, options.splits)
    print(f"winner's curse over {options.splits} splits, accuracy on the search side less on the report side:")
    for label, values in (("best of 40", best), ("one at random", drawn)):
        error = statistics.stdev(values) / len(values) ** 0.5
        print(f"  {label:14} {statistics.fmean(values):+.4f} ± {1.96 * error:.4f}")


_NAMES = {
    "volume": "hypervolume of evaluating everything, search side",
    "report_volume": "the same, report side",
    "items": "items scored, of scoring all",
    "seconds": "evaluation seconds, of evaluating everything in full",
}


def _stop(found: Screened) -> str:
    last = found.readings[-1]
    return f"rung {last.rung} ({last.quantity})"


def _share(
    pool: Pool, measured: Sequence[Candidate], everything: Sequence[Candidate], items: dict[str, tuple[str, ...]]
) -> float:
    reference = reference_point(pool.baseline.objectives(items))
    volumes = [
        hypervolume(loss_rows([candidate.objectives(items) for candidate in group]), reference)
        for group in (measured, everything)
    ]
    return volumes[0] / volumes[1]


def _lost(
    pool: Pool, measured: Sequence[Candidate], rejected: Sequence[Candidate], items: dict[str, tuple[str, ...]]
) -> list[str]:
    """Rejected candidates whose full figures would have added 1 % to the frontier of those measured in the end."""
    rivals = [
        Rival(episode=number, objectives=candidate.objectives(items), intervals=candidate.intervals(items))
        for number, candidate in enumerate(measured)
    ]
    contest = Contest(rivals, ScreeningPlan().least_gain)
    return [candidate.strategy for candidate in rejected if contest.can_change(candidate.objectives(items))]


if __name__ == "__main__":
    main()
