"""The rungs of a candidate's evaluation: cheap evidence first, the next measurement only while it can matter.

The order follows cost over what a measurement decides:

====  ===========================  ==================================================================================
rung  measured                     rejects when
====  ===========================  ==================================================================================
0     nothing: size is known       no accuracy could change the frontier at that size
0     a glance at latency, energy  the same with 85 % of the least that three requests took, and with the memory
                                   that rivals on the same engine needed beside their weights (``memory_floor``)
0     a glance at memory           the same with the first of several repetitions, less 3 %
0     latency and energy           no accuracy could change the frontier at these costs. First of all measurements,
                                   because without costs the optimistic corner is nearly perfect and nothing could
                                   ever be rejected, and a dozen short requests are cheaper than a tenth of the items
1     divergence, cached text      the most accurate of earlier candidates that diverged half as much is not enough
1     memory                       the same, now that all costs are known and no longer floors. It loads the checkpoint
                                   a few times, and candidates that are no smaller, lighter or faster than a rival need
                                   not be asked a single item after it
2     a tenth of the items         the accuracy's upper bound is not enough
3     the rest, in portions        the same, after each portion
====  ===========================  ==================================================================================

"Enough" is decided by ``contest.Contest``, the upper bound by ``sequential.upper_bound``, which may be asked after
every portion. All candidates get the same items in the same order, so rivals' answers to these items serve as
predictors. This module computes nothing about models: it drives anything that has the shape of ``Candidate``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from agentic_compression.evaluation.contest import Contest, accuracy_ceiling
from agentic_compression.evaluation.sequential import Population, lower_bound, upper_bound
from agentic_compression.evaluation.split import rank
from agentic_compression.records import Estimate, Objectives, Rival, Rung, RungReading, ScreeningPlan
from agentic_compression.records.screening import NEARLY, OPTIMISM

__all__ = [
    "Candidate",
    "ItemName",
    "Screened",
    "asking_order",
    "can_be_paired",
    "memory_floor",
    "population_of",
    "portion_ends",
    "screen",
]

ItemName = tuple[str, str]
"""Task and id."""

_GROWTH = 1.6
_LEAST_KIN = 3
_KIN_SHARE = 0.8
_NOT_MEASURED = ("model_size_gb", "weights_gb")
_Value = TypeVar("_Value")


class Candidate(Protocol):
    """What the rungs may ask for; each is asked for once, and only while it can matter."""

    @property
    def size_gb(self) -> float: ...

    @property
    def memory_floor_gb(self) -> float:
        """What its memory cannot be below whatever runs it."""
        ...

    @property
    def weights_gb(self) -> float:
        """Its weights as loaded."""
        ...

    @property
    def engine(self) -> str:
        """What runs it, as rivals name theirs."""
        ...

    @property
    def vocabulary(self) -> int: ...

    def glance(self) -> tuple[float, float]:
        """The least that one of a few requests took: ms, and grams CO2e (0 where so few cannot tell)."""
        ...

    def glance_at_memory(self) -> float:
        """GB of the first of several repetitions."""
        ...

    def serve(self) -> tuple[Estimate, Estimate]:
        """Latency in ms and grams CO2e of the fixed workload."""
        ...

    def diverge(self) -> Estimate | None:
        """Nats a token from the baseline; None where that cannot be measured."""
        ...

    def remember(self) -> Estimate:
        """Memory in GB."""
        ...

    def answer(self, items: Sequence[ItemName]) -> list[float]:
        """Scores in [0, 1] of these items, in their order; called with successive portions."""
        ...


@dataclass
class Screened:
    """What became of a candidate.

    Attributes:
        readings: every rung's evidence, in order.
        rejection: why it was not measured in full; None when it passed.
        asked: items that were scored.
    """

    readings: list[RungReading] = field(default_factory=list)
    rejection: str | None = None
    asked: int = 0


def asking_order(items: Mapping[str, Sequence[str]], seed: int) -> list[ItemName]:
    """All items of all tasks in one seeded random order, which does not depend on how they are listed."""
    pairs = [(task, name) for task, names in items.items() for name in names]
    return sorted(pairs, key=lambda pair: (rank(f"{pair[0]}\0{pair[1]}", seed), pair))


def portion_ends(total: int, proxy_share: float) -> list[int]:
    """How many items have been asked after each portion: the proxy's share, then 1.6 times as many each time."""
    ends, reached = [], max(1, math.ceil(total * proxy_share))
    while reached < total:
        ends.append(reached)
        reached = math.ceil(reached * _GROWTH)
    return [*ends, total]


def population_of(
    plan: ScreeningPlan, items: Mapping[str, Sequence[str]], order: Sequence[ItemName], weights: Mapping[str, float]
) -> Population:
    """The items with what their scores count for, and what rivals' answers predict of them.

    The predictors are the baseline's scores and the mean over all rivals whose scores are known; none where rivals
    were asked other items.

    Args:
        plan: rivals with scores, in the order of the plan's items.
        items: ids by task that are asked now.
        order: the same as they are asked.
        weights: of the tasks.
    """
    import numpy as np

    whole = sum(weights[task] for task, names in items.items() if names)
    value = {task: weights[task] / whole * len(order) / len(names) for task, names in items.items() if names}
    counts = np.array([value[task] for task, _ in order], dtype=np.float64)
    if not can_be_paired(plan, items):
        return Population(counts)
    place = {(task, name): index for task, names in plan.items.items() for index, name in enumerate(names)}
    paired = [rival for rival in sorted(plan.rivals, key=lambda rival: rival.episode) if _is_paired(plan, rival)]
    rows = [[rival.scores[task][place[task, name]] for task, name in order] for rival in paired]
    predictors = [row for rival, row in zip(paired, rows, strict=True) if rival.episode == 0]
    if len(rows) > 1:
        predictors.append(list(np.mean(rows, axis=0)))
    return Population(counts, tuple(np.array(row, dtype=np.float64) for row in predictors))


def can_be_paired(plan: ScreeningPlan, items: Mapping[str, Sequence[str]]) -> bool:
    """Whether the plan's items are the ones that are asked now."""
    return any(plan.items.values()) and _sorted(plan.items) == _sorted(items)


def memory_floor(plan: ScreeningPlan, candidate: Candidate) -> float:
    """What the candidate's memory will hardly be below, in GB.

    Rivals on the same engine, three or more, tell what it needs beside the weights: as much again, or as many times
    the weights, whichever is more, of the rival that needed least. Four fifths of that is still optimistic. With fewer
    such rivals only the candidate's own floor is left.
    """
    kin = [rival for rival in plan.rivals if rival.engine == candidate.engine and rival.weights_gb]
    if len(kin) < _LEAST_KIN:
        return candidate.memory_floor_gb
    beside = min(rival.objectives.memory_gb - rival.weights_gb for rival in kin)
    times = min(rival.objectives.memory_gb / rival.weights_gb for rival in kin)
    expected = max(candidate.weights_gb + beside, candidate.weights_gb * times)
    return max(candidate.memory_floor_gb, _KIN_SHARE * expected)


def screen(
    plan: ScreeningPlan,
    candidate: Candidate,
    items: Mapping[str, Sequence[str]],
    weights: Mapping[str, float],
    seed: int,
) -> Screened:
    """Carry a candidate up the rungs until one rejects it or all items are asked.

    Args:
        plan: rivals and thresholds.
        candidate: gives one measurement after the other.
        items: ids of the search side by task; empty where they cannot be asked in portions, and rungs 2 and 3 decide
            nothing.
        weights: of the tasks.
        seed: of the order in which items are asked.
    """
    run = _Run(plan, candidate)
    order = asking_order(items, seed)
    try:
        run.costs()
        run.divergence()
        run.memory()
        if order:
            run.items(order, population_of(plan, items, order, weights))
    except _Rejection as rejection:
        run.result.rejection = str(rejection)
    return run.result


class _Rejection(Exception):  # noqa: N818 - ends a screening early; nothing went wrong
    pass


class _Run:
    """One candidate's way up."""

    def __init__(self, plan: ScreeningPlan, candidate: Candidate) -> None:
        self.result = Screened()
        self._plan, self._candidate = plan, candidate
        self._contest = Contest(plan.rivals, plan.least_gain)
        self._corner = Objectives(
            accuracy=1.0,
            latency_ms=0.0,
            memory_gb=memory_floor(plan, candidate),
            model_size_gb=candidate.size_gb,
            co2_grams=0.0,
        )
        self._ceiling = 1.0
        self._least_accuracy: float | None = None

    def costs(self) -> None:
        """Rung 0."""
        size = self._candidate.size_gb
        self._judge(0, "model_size_gb", _exact(size), 0.0, 1.0, "size")
        self._read(0, "weights_gb", _exact(self._candidate.weights_gb), 0.0, passed=True)
        if self._plan.reject:
            self._glance()
        (latency, co2), seconds = _timed(self._candidate.serve)
        self._corner = self._corner.model_copy(update={"latency_ms": latency.value, "co2_grams": co2.value})
        self._judge(0, "latency_ms", latency, seconds, 1.0, "size, latency and CO2")

    def _glance(self) -> None:
        (latency, co2), seconds = _timed(self._candidate.glance)
        latency, co2 = OPTIMISM * latency, OPTIMISM * co2
        self._corner = self._corner.model_copy(update={"latency_ms": latency, "co2_grams": co2})
        self._read(0, "co2_floor_grams", _exact(co2), 0.0, passed=True)
        self._judge(0, "latency_floor_ms", _exact(latency), seconds, 1.0, "size, a few requests and rivals' memory")
        memory, seconds = _timed(self._candidate.glance_at_memory)
        memory = max(self._corner.memory_gb, NEARLY * memory)
        self._corner = self._corner.model_copy(update={"memory_gb": memory})
        self._judge(0, "memory_floor_gb", _exact(memory), seconds, 1.0, "size, a few requests and one look at memory")

    def divergence(self) -> None:
        """Rung 1."""
        kl, seconds = _timed(self._candidate.diverge)
        if kl is None:
            return
        self._ceiling = accuracy_ceiling(kl.value, self._plan.evidence, self._candidate.vocabulary)
        self._judge(1, "kl", kl, seconds, self._ceiling, f"a divergence of {kl.value:.3g} nats a token")

    def memory(self) -> None:
        """The last of the costs."""
        memory, seconds = _timed(self._candidate.remember)
        self._corner = self._corner.model_copy(update={"memory_gb": memory.value})
        self._judge(1, "memory_gb", memory, seconds, self._ceiling, "all costs")

    def items(self, order: Sequence[ItemName], population: Population) -> None:
        """Rungs 2 and 3."""
        scores: list[float] = []
        ends = portion_ends(len(order), self._plan.proxy_share) if self._plan.reject else [len(order)]
        for end in ends:
            rung: Rung = 2 if end == ends[0] and len(ends) > 1 else 3
            answers, seconds = _timed(partial(self._candidate.answer, order[len(scores) : end]))
            scores += answers
            self.result.asked = len(scores)
            accuracy = _accuracy(population, scores, self._plan.error)
            told = f"an accuracy of at most {accuracy.high:.3f} after {len(scores)} of {len(order)} items"
            if end == len(order):  # all are asked: it is measured, whatever it adds
                self._read(rung, "accuracy", accuracy, seconds, passed=True)
            else:
                self._judge(rung, "accuracy", accuracy, seconds, accuracy.high, told)

    def _judge(self, rung: Rung, quantity: str, value: Estimate, seconds: float, ceiling: float, told: str) -> None:
        """Note the reading, and end here when the corner cannot change the frontier any more.

        Raises:
            _Rejection: with the numbers.
        """
        reason = self._reason(ceiling, told, told_costs=quantity != "accuracy") if self._plan.reject else None
        self._read(rung, quantity, value, seconds, passed=reason is None, reason=reason or "")
        if reason is not None:
            raise _Rejection(f"rung {rung}: {reason}")

    def _reason(self, ceiling: float, told: str, told_costs: bool) -> str | None:
        contest, corner = self._contest, self._corner
        if told_costs or self._least_accuracy is None:
            needed = contest.needed_accuracy(corner)
            if needed is None:
                return (
                    f"with its {_costs(corner)} no accuracy would add {self._plan.least_gain:.1%} to the hypervolume "
                    f"of {contest.volume:.4f} ({told})"
                )
            self._least_accuracy = needed
        if ceiling >= self._least_accuracy:
            return None
        return (
            f"{told} leaves {ceiling:.3f} at most, and at {_costs(corner)} it takes {self._least_accuracy:.3f} to add "
            f"{self._plan.least_gain:.1%} to the hypervolume of {contest.volume:.4f}"
        )

    def _read(
        self, rung: Rung, quantity: str, value: Estimate, seconds: float, *, passed: bool, reason: str = ""
    ) -> None:
        self.result.readings.append(
            RungReading(
                rung=rung,
                quantity=quantity,
                value=value.value,
                low=value.low,
                high=value.high,
                n=0 if quantity in _NOT_MEASURED else value.n,
                seconds=seconds,
                passed=passed,
                reason=reason,
            )
        )


def _accuracy(population: Population, scores: Sequence[float], error: float) -> Estimate:
    """The accuracy so far with its bounds on the accuracy over all items, each valid whenever one looks."""
    import numpy as np

    weights = population.weights[: len(scores)]
    value = float(weights @ np.asarray(scores) / weights.sum())
    low, high = lower_bound(population, scores, error), upper_bound(population, scores, error)
    return Estimate(value=value, low=min(low, value), high=max(high, value), n=len(scores))


def _is_paired(plan: ScreeningPlan, rival: Rival) -> bool:
    return all(len(rival.scores.get(task, ())) == len(names) for task, names in plan.items.items())


def _sorted(items: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {task: sorted(names) for task, names in items.items() if names}


def _costs(corner: Objectives) -> str:
    return (
        f"{corner.latency_ms:.4g} ms, {corner.memory_gb:.4g} GB of memory, {corner.model_size_gb:.4g} GB on disk, "
        f"{corner.co2_grams:.3g} g CO2e"
    )


def _exact(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, n=1)


def _timed(work: Callable[[], _Value]) -> tuple[_Value, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started
