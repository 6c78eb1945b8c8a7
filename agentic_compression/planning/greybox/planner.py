"""The planner: every untried strategy's expected gain in hypervolume, and the one with the most.

It reads all five objectives of what was measured. Latency, memory and energy are noisy, so two runs of one study may
differ in what they try.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agentic_compression.pareto import loss_rows, normalised_losses, reference_point
from agentic_compression.planning.greybox.costs import COSTS, CostModel, shares_of
from agentic_compression.planning.greybox.damage import LEAST_KL, AccuracyCurve, DamageModel
from agentic_compression.planning.greybox.features import Design
from agentic_compression.planning.greybox.gain import expected_gain
from agentic_compression.planning.greybox.pool import Encoder, pool_of
from agentic_compression.planning.greybox.priors import damage_beliefs, time_expectations
from agentic_compression.planning.grid import StrategyGrid, canonical, tried_keys
from agentic_compression.records import (
    Candidate,
    EpisodeRecord,
    Expected,
    Objectives,
    Proposal,
    SearchSpace,
    Situation,
    Strategy,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["GreyboxPlanner", "greybox_planner"]

_QUANTILES = 9
_ALIKE = 2
_LOOKED_AT = 4
_IMPATIENCE = 0.3
"""Without a limit on time, what takes ten times as long must promise twice the gain."""
_LEAST_ACCURACY_NOISE = 0.004
_KL_NOISE = 0.25


class GreyboxPlanner:
    """Beliefs about methods, made precise by what was measured; then expected hypervolume improvement."""

    name = "greybox"

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """The untried strategy with the largest expected gain; see ``Planner``."""
        found = self.candidates(space, history, seed, situation, limit=1)
        if not found:
            grid = StrategyGrid(space)
            reason = f"all {grid.count} strategies were tried"
            return Proposal(end="search_space_exhausted", source=self.name, rationale=reason)
        best = found[0]
        return Proposal(strategy=best.strategy, source=self.name, rationale=_rationale(best), expected=best.expected)

    def candidates(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
        limit: int = 8,
    ) -> tuple[Candidate, ...]:
        """Untried strategies with the largest expected gains, and what is expected of them.

        Args:
            space: the methods on offer.
            history: everything recorded of the study.
            seed: of the study; draws the strategies looked at where there are too many to look at all.
            situation: shapes of the model, constraints, experiences of earlier studies.
            limit: how many.
        """
        situation = situation or Situation()
        tried = tried_keys(space, history)
        encoder = Encoder(space, shares_of(situation.spec))
        pool, design = pool_of(encoder, history, tried, seed)
        if not pool:
            return ()
        beliefs = _Posterior(encoder, history, situation)
        forecast = beliefs.forecast(design)
        seconds = beliefs.seconds(design)
        limited = situation.seconds_left is not None or situation.co2_left_grams is not None
        patience = (seconds / seconds.min()) ** -(1.0 if limited else _IMPATIENCE)
        worth = beliefs.gains(forecast, pool, patience, best=_LOOKED_AT * limit)
        order = sorted(range(len(pool)), key=lambda i: (-worth[i], -forecast.accuracy[i]))
        return tuple(
            Candidate(
                strategy=pool[i],
                expected=forecast.expected(i),
                gain=float(worth[i] / patience[i]),
                seconds=float(seconds[i]),
            )
            for i in _varied(order, pool, limit)
        )


def greybox_planner(storage_path: Path | None = None) -> GreyboxPlanner:
    """The planner; it keeps no file."""
    return GreyboxPlanner()


@dataclass(frozen=True)
class _Forecast:
    """What is expected of a pool: shapes ``(n,)``, ``(n, quantiles)`` and by cost ``(n,)`` in the objectives' units."""

    accuracy: Array
    losses: Array
    scatter: float
    costs: dict[str, Array]
    spread: dict[str, Array]

    def expected(self, index: int) -> Expected:
        wide = 1.96 * self.scatter
        worst, best = 1 - self.losses[index].max() - wide, 1 - self.losses[index].min() + wide
        found: Expected = {"accuracy": (float(self.accuracy[index]), float(max(0.0, worst)), float(min(1.0, best)))}
        for name, values in self.costs.items():
            factor = math.exp(1.96 * float(self.spread[name][index]))
            value = float(values[index])
            found[name] = (value, value / factor, value * factor)
        return found


class _Posterior:
    """Everything learned from one history."""

    def __init__(self, encoder: Encoder, history: Sequence[EpisodeRecord], situation: Situation) -> None:
        self._encoder, self._situation = encoder, situation
        self._baseline = next(
            (record.objectives for record in history if record.strategy.is_baseline and record.objectives), None
        )
        self._measured = [
            record
            for record in history
            if record.objectives is not None and not record.strategy.is_baseline and record.status == "succeeded"
        ]
        self._history = history
        known = [record for record in history if not record.strategy.is_baseline and _kl(record) is not None]
        self.damage = DamageModel(
            damage_beliefs(encoder.columns), self._design(known), _log_kl(known), np.full(len(known), _KL_NOISE)
        )
        self.curve = self._curve(known)
        self.costs = {name: self._cost(name) for name in COSTS}

    def forecast(self, design: Design) -> _Forecast:
        """What is expected of strategies."""
        from scipy.special import ndtri

        mean, deviation = self.damage.predict(design)
        quantiles = ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
        losses = 1 - self.curve(mean[:, None] + deviation[:, None] * quantiles)
        baseline = self._baseline or _UNIT
        costs, spread = {}, {}
        for name, model in self.costs.items():
            log_ratio, wide = model.predict(design)
            costs[name], spread[name] = np.exp(log_ratio) * float(getattr(baseline, name)), wide
        return _Forecast(1 - losses.mean(axis=1), losses, self.curve.scatter, costs, spread)

    def gains(self, forecast: _Forecast, pool: Sequence[Strategy], weight: Array, best: int) -> Array:
        """Expected hypervolume that each adds, as a share of the reference box, times a weight; the best are exact."""
        baseline = self._baseline or _UNIT
        reference = reference_point(baseline)
        known = [record.objectives for record in self._history if record.objectives and record.status == "succeeded"]
        members = normalised_losses(loss_rows(known or [baseline]), reference)
        limits = np.array([float(getattr(reference, name)) for name in COSTS])
        costs = np.stack([forecast.costs[name] for name in COSTS], axis=1) / np.maximum(limits, 1e-12)
        losses = forecast.losses / (1 - reference.accuracy)
        chance = self._feasible(pool) * self._allowed(forecast, baseline)
        return expected_gain(members, costs, losses, forecast.scatter, chance * weight, best)

    def seconds(self, design: Design) -> Array:
        """Expected seconds of an episode, ``(n,)``; before any was timed in units of an untrained one."""
        model = CostModel("seconds", self._encoder.columns, time_expectations(self._encoder.columns))
        timed = [record for record in self._measured if _seconds(record) > 0]
        usual = 1.0
        if timed:
            spent = np.array([_seconds(record) for record in timed])
            known = self._design(timed)
            usual = float(np.exp(np.median(np.log(spent) - model.predict(known)[0])))
            model.fit(known, spent / usual)
        return np.asarray(usual * np.exp(model.predict(design)[0]))

    def _design(self, records: Sequence[EpisodeRecord]) -> Design:
        return self._encoder.design([canonical(self._encoder.space, record.strategy) for record in records])

    def _curve(self, known: Sequence[EpisodeRecord]) -> AccuracyCurve:
        baseline = self._baseline.accuracy if self._baseline else 1.0
        pairs = [record for record in known if record.objectives is not None]
        accuracy = np.array([record.objectives.accuracy for record in pairs if record.objectives])
        return AccuracyCurve(
            baseline, _log_kl(pairs), accuracy, np.array([_accuracy_noise(record) for record in pairs])
        )

    def _cost(self, name: str) -> CostModel:
        model = CostModel(name, self._encoder.columns)
        if self._baseline is None:
            return model
        whole = float(getattr(self._baseline, name))
        rows = [record for record in self._measured if record.objectives and whole > 0]
        ratios = np.array([max(1e-6, float(getattr(record.objectives, name)) / whole) for record in rows])
        model.fit(self._design(rows), ratios)
        return model

    def _feasible(self, pool: Sequence[Strategy]) -> Array:
        """Probability of being carried out: by each stage's method, and by the pair of methods, as often as it was."""
        tried: dict[tuple[str, ...], list[int]] = {}
        for record in self._history:
            worked = int(record.status in {"succeeded", "rejected"})
            names = tuple(stage.method for stage in record.strategy.stages)
            for group in {(name,) for name in names} | ({names} if len(names) > 1 else set()):
                counts = tried.setdefault(group, [0, 0])
                counts[0] += worked
                counts[1] += 1
        found = np.ones(len(pool))
        for row, strategy in enumerate(pool):
            names = tuple(stage.method for stage in strategy.stages)
            for group in {(name,) for name in names} | ({names} if len(names) > 1 else set()):
                done, total = tried.get(group, (0, 0))
                found[row] *= (done + 1.0) / (total + 1.0)
        return found

    def _allowed(self, forecast: _Forecast, baseline: Objectives) -> Array:
        """Probability of satisfying the study's constraints."""
        from scipy.special import ndtr

        found = np.ones(len(forecast.accuracy))
        for constraint in self._situation.constraints:
            sign = 1.0 if constraint.operator == "<=" else -1.0
            if constraint.quantity in {"accuracy", "accuracy_drop"}:
                values = 1 - forecast.losses
                values = baseline.accuracy - values if constraint.quantity == "accuracy_drop" else values
                inside = ndtr(sign * (constraint.bound - values) / max(forecast.scatter, 1e-6))
                found *= inside.mean(axis=1)
                continue
            name = "model_size_gb" if constraint.quantity == "size_ratio" else constraint.quantity
            bound = constraint.bound * (baseline.model_size_gb if constraint.quantity == "size_ratio" else 1.0)
            distance = math.log(max(bound, 1e-12)) - np.log(forecast.costs[name])
            found *= ndtr(sign * distance / forecast.spread[name])
        return found


_UNIT = Objectives(accuracy=1.0, latency_ms=1.0, memory_gb=1.0, model_size_gb=1.0, co2_grams=1.0)


def _varied(order: Sequence[int], pool: Sequence[Strategy], limit: int) -> list[int]:
    """The first in order, no more than two of the same methods as long as there are others."""
    chosen: list[int] = []
    alike: dict[tuple[str, ...], int] = {}
    for place in order:
        methods = tuple(stage.method for stage in pool[place].stages)
        alike[methods] = alike.get(methods, 0) + 1
        if alike[methods] <= _ALIKE:
            chosen.append(place)
        if len(chosen) == limit:
            return chosen
    return [*chosen, *(place for place in order if place not in set(chosen))][:limit]


def _log_kl(records: Sequence[EpisodeRecord]) -> Array:
    return np.array([math.log(max(LEAST_KL, _kl(record) or 0.0)) for record in records], dtype=np.float64)


def _kl(record: EpisodeRecord) -> float | None:
    if record.evaluation is not None and record.evaluation.divergence is not None:
        return record.evaluation.divergence.kl.value
    return next((reading.value for reading in record.screening if reading.quantity == "kl"), None)


def _seconds(record: EpisodeRecord) -> float:
    return record.timings.get("total", 0.0)


def _accuracy_noise(record: EpisodeRecord) -> float:
    low, high = record.intervals.get("accuracy", (0.0, 0.0))
    return max(_LEAST_ACCURACY_NOISE, (high - low) / 3.92)


def _rationale(best: Candidate) -> str:
    accuracy, size = best.expected["accuracy"], best.expected["model_size_gb"]
    return (
        f"greybox: expected to add {best.gain:.2%} of the reference box; accuracy {accuracy[0]:.3f} "
        f"[{accuracy[1]:.3f}, {accuracy[2]:.3f}], {size[0]:.4g} GB"
    )
