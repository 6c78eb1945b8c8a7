"""A planner led through a recorded table as through a study: what it proposes is looked up instead of carried out."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import moocore
import numpy as np
from numpy.typing import NDArray

from agentic_compression.evaluation.intervals import proportion
from agentic_compression.evaluation.split import side_of
from agentic_compression.pareto import loss_rows, normalised_losses, reference_point
from agentic_compression.planning.grid import StrategyGrid, canonical
from agentic_compression.planning.interface import Planner
from agentic_compression.planning.seeds import SEEDS, seed_strategies
from agentic_compression.records import (
    BASELINE,
    EpisodeRecord,
    ModelSpec,
    Objectives,
    Proposal,
    Recalled,
    RungReading,
    SearchSpace,
    Situation,
    Strategy,
)
from benchmarks.planners.spaces import replay_space
from benchmarks.planners.table import Row, Table, unpack_answers

__all__ = ["Course", "Replay", "course_of", "episodes_of", "play"]

SHARE = 0.5


@dataclass
class Replay:
    """A table seen through one seed: which half of the items planners see, and the strategies all are given.

    Args:
        table: every strategy of the space, measured.
        seed: draws the half of the items and, with ``given_at_random``, the given strategies.
        given: how many strategies every planner is given before it may choose.
        recalled: what memory tells planners of earlier studies.
        given_at_random: drawn from the space instead of being the study's own seed strategies.
    """

    table: Table
    seed: int
    given: int = SEEDS
    given_at_random: bool = False
    space: SearchSpace = field(default_factory=replay_space)
    recalled: tuple[Recalled, ...] = ()

    @cached_property
    def rows(self) -> dict[str, Row]:
        """By the label of the strategy's canonical form: read back from it, 6 and 6.0 are the same."""
        return {row.strategy: row for row in self.table.rows}

    @cached_property
    def baseline(self) -> Objectives:
        """The uncompressed model on the visible items."""
        return self.record(BASELINE, 0).objectives  # type: ignore[return-value]

    @cached_property
    def reference(self) -> Objectives:
        """Frozen: of this table and half."""
        return reference_point(self.baseline)

    @cached_property
    def best(self) -> float:
        """Hypervolume of everything in the table."""
        known = [self.record(Strategy.parse(row.strategy), 1).objectives for row in self.table.rows if not row.error]
        return self.volume([objectives for objectives in known if objectives])

    def volume(self, objectives: Sequence[Objectives]) -> float:
        """Share of the reference box that these dominate."""
        points: NDArray[np.float64] = normalised_losses(loss_rows(objectives), self.reference)
        inside = points[(points < 1.0).all(axis=1)]
        return float(moocore.hypervolume(inside, ref=np.ones(inside.shape[1]))) if len(inside) else 0.0

    def given_strategies(self) -> list[Strategy]:
        """The same for every planner."""
        if not self.given_at_random:
            return [strategy for strategy, _ in seed_strategies(self.space, limit=self.given)]
        grid = StrategyGrid(self.space)
        return [grid.at(index) for index in random.Random(self.seed).sample(range(grid.count), self.given)]

    def situation(self, spec: ModelSpec | None, history: Sequence[EpisodeRecord], episodes: int) -> Situation:
        """What a study would tell its planner besides the history."""
        header = self.table.header
        left = episodes + 1 - len(history)
        return Situation(
            spec=spec, dataset=header.dataset, tasks=tuple(header.items), episodes_left=left, recalled=self.recalled
        )

    def record(self, strategy: Strategy, episode: int) -> EpisodeRecord:
        """What a study would have recorded of this strategy.

        Raises:
            KeyError: for a strategy that the table does not hold.
        """
        row = self.rows[canonical(self.space, strategy).label]
        if row.error:
            return EpisodeRecord(study="replay", episode=episode, strategy=strategy, status="failed", error=row.error)
        accuracy, low, high = self._accuracy(row)
        intervals = {name: (low_, high_) for name, (_, low_, high_) in row.values.items()} | {"accuracy": (low, high)}
        objectives = row.objectives.model_copy(update={"accuracy": accuracy})
        screening = []
        if row.kl is not None:
            kl = row.kl
            screening = [
                RungReading(rung=1, quantity="kl", value=kl.value, low=kl.low, high=kl.high, n=kl.n, passed=True)
            ]
        return EpisodeRecord(
            study="replay",
            episode=episode,
            strategy=strategy,
            status="succeeded",
            objectives=objectives,
            intervals=intervals,
            screening=tuple(screening),
        )

    def _accuracy(self, row: Row) -> tuple[float, float, float]:
        """Of the visible half, tasks weighing the same; the interval as of one proportion."""
        answers = unpack_answers(row.answers)
        seen = {task: [answers[task][place] for place in places] for task, places in self._visible.items()}
        value = statistics.fmean(statistics.fmean(outcomes) for outcomes in seen.values())
        pooled = proportion([outcome for outcomes in seen.values() for outcome in outcomes])
        return value, min(pooled.low, value), max(pooled.high, value)

    @cached_property
    def _visible(self) -> dict[str, list[int]]:
        return {
            task: [
                place for place, name in enumerate(names) if side_of(f"{task}\0{name}", self.seed, SHARE) == "search"
            ]
            for task, names in self.table.header.items.items()
        }


@dataclass
class Course:
    """One planner's way through one replay.

    Attributes:
        volumes: hypervolume after each episode as a share of the table's best, the baseline's first.
        strategies: what was tried, in order.
        sources: what proposed it, in the same order.
    """

    volumes: list[float]
    strategies: list[str]
    sources: list[str] = field(default_factory=list)

    def area(self, start: int = 0) -> float:
        """Mean share of the best hypervolume over the episodes from ``start`` on."""
        return statistics.fmean(self.volumes[start + 1 :])

    def episodes_to(self, share: float) -> int | None:
        """Episodes until that share of the best hypervolume was reached; None when it was not."""
        return next((number for number, volume in enumerate(self.volumes) if volume >= share), None)


def play(replay: Replay, planner: Planner, episodes: int, spec: ModelSpec | None = None) -> Course:
    """Let a planner run a study on a table."""
    return course_of(replay, tuple(episodes_of(replay, planner, episodes, spec)))


def episodes_of(
    replay: Replay, planner: Planner, episodes: int, spec: ModelSpec | None = None, done: Sequence[EpisodeRecord] = ()
) -> Iterator[EpisodeRecord]:
    """The records of a study on a table as they come, the baseline's first; fewer where the planner ends the search.

    Args:
        replay: the table and the half of its items.
        planner: asked after the given strategies.
        episodes: compressed ones at most.
        spec: of the model.
        done: records of this replay that are not carried out again, without the baseline's.
    """
    history = [replay.record(BASELINE, 0), *done]
    yield from history
    given = replay.given_strategies()
    while len(history) <= episodes:
        if len(history) <= len(given):
            proposal = Proposal(strategy=given[len(history) - 1], source="seed")
        else:
            proposal = planner.propose(replay.space, history, replay.seed, replay.situation(spec, history, episodes))
        if proposal.strategy is None:
            return
        told = {name: getattr(proposal, name) for name in ("source", "rationale", "expected", "calls", "fallback")}
        history.append(replay.record(proposal.strategy, len(history)).model_copy(update=told))
        yield history[-1]


def course_of(replay: Replay, records: Sequence[EpisodeRecord]) -> Course:
    """What these episodes, the baseline first, came to."""
    volumes, known = [], []
    for record in records:
        if record.objectives is not None:
            known.append(record.objectives)
        volumes.append(replay.volume(known) / replay.best)
    return Course(volumes, [record.strategy.label for record in records], [record.source for record in records])


def tables(paths: Sequence[Path], read: Callable[[Path], Table] = Table.read) -> dict[str, Table]:
    """Tables by name."""
    return {path.stem: read(path) for path in paths}
