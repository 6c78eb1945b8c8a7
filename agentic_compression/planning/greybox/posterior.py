"""What a planner believes after a history: divergence, accuracy, costs, time, and what can be carried out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentic_compression.pareto import loss_rows, normalised_losses, reference_point
from agentic_compression.planning.greybox.costs import COSTS, CostModel, shares_of
from agentic_compression.planning.greybox.damage import LEAST_KL, AccuracyCurve, DamageModel
from agentic_compression.planning.greybox.evidence import (
    Evidence,
    accuracy_of,
    kl_of,
    of_history,
    of_memory,
    sources_of,
)
from agentic_compression.planning.greybox.features import Design
from agentic_compression.planning.greybox.gain import expected_gain
from agentic_compression.planning.greybox.pool import Encoder
from agentic_compression.planning.greybox.priors import damage_beliefs, time_expectations
from agentic_compression.planning.grid import canonical
from agentic_compression.records import EpisodeRecord, Expected, Objectives, SearchSpace, Situation, Strategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["Forecast", "Posterior", "encoder_of"]

_QUANTILES = 9
_FAR = math.sqrt(3)
_NODES = (
    ((0.0, 0.0), 1 / 3), ((-_FAR, 0.0), 1 / 6), ((_FAR, 0.0), 1 / 6), ((0.0, -_FAR), 1 / 6), ((0.0, _FAR), 1 / 6)
)  # fmt: skip
"""Where doubt about speed and about memory is looked at, in deviations, and with what weight: exact to third order.

Latency and CO2 are off together. What is in doubt about size hardly matters.
"""
_OFF = {"latency_ms": 0, "memory_gb": 1, "co2_grams": 0}
_LEAST_ACCURACY_NOISE = 0.004
_KL_NOISE = 0.25
_ELSEWHERE = {"latency_ms": 0.6, "memory_gb": 0.3, "model_size_gb": 0.1, "co2_grams": 0.6}
"""How far a cost ratio carries over to another model, as a share of the doubt about its divergence."""


@dataclass(frozen=True)
class Forecast:
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


def encoder_of(space: SearchSpace, situation: Situation) -> Encoder:
    """For the strategies of a study, and for those that memory recalls from other models."""
    return Encoder(space, shares_of(situation.spec), sources_of(situation))


class Posterior:
    """Everything learned from one history."""

    def __init__(self, encoder: Encoder, history: Sequence[EpisodeRecord], situation: Situation) -> None:
        self._encoder, self._situation = encoder, situation
        self._baseline = next(
            (record.objectives for record in history if record.strategy.is_baseline and record.objectives), None
        )
        self._history = history
        space = encoder.space
        self._evidence = of_history(space, history, self._baseline) + of_memory(space, situation)
        diverged = [item for item in self._evidence if item.kl is not None]
        log_kl = np.array([math.log(max(LEAST_KL, item.kl or 0.0)) for item in diverged], dtype=np.float64)
        noise = np.array([math.hypot(_KL_NOISE, item.doubt) for item in diverged], dtype=np.float64)
        self.damage = DamageModel(damage_beliefs(encoder.columns), self._design(diverged), log_kl, noise)
        self.curve = self._curve()
        self.costs = {name: self._cost(name) for name in COSTS}

    def forecast(self, design: Design) -> Forecast:
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
        return Forecast(1 - losses.mean(axis=1), losses, self.curve.scatter, costs, spread)

    def gains(self, forecast: Forecast, pool: Sequence[Strategy], weight: Array, best: int) -> Array:
        """Expected hypervolume that each adds, as a share of the reference box, times a weight; the best are exact."""
        baseline = self._baseline or _UNIT
        reference = reference_point(baseline)
        known = [record.objectives for record in self._history if record.objectives and record.status == "succeeded"]
        members = normalised_losses(loss_rows(known or [baseline]), reference)
        limits = np.array([float(getattr(reference, name)) for name in COSTS])
        costs = np.stack([forecast.costs[name] for name in COSTS], axis=1) / np.maximum(limits, 1e-12)
        doubt = np.stack(
            [np.sqrt(np.maximum(0.0, forecast.spread[name] ** 2 - self.costs[name].noise ** 2)) for name in COSTS],
            axis=1,
        )  # what a measurement would settle, the noise left out
        losses = forecast.losses / (1 - reference.accuracy)
        chance = self._feasible(pool) * self._allowed(forecast) * weight
        found = np.zeros(len(pool))
        for place, share in _NODES:
            off = np.array([place[_OFF[name]] if name in _OFF else 0.0 for name in COSTS])
            found += share * expected_gain(members, costs * np.exp(off * doubt), losses, forecast.scatter, chance, best)
        return found

    def seconds(self, design: Design) -> Array:
        """Expected seconds of an episode, ``(n,)``; before any was timed in units of an untrained one."""
        model = CostModel("seconds", self._encoder.columns, time_expectations(self._encoder.columns))
        timed = [record for record in self._history if not record.strategy.is_baseline and _seconds(record) > 0]
        usual = 1.0
        if timed:
            spent = np.array([_seconds(record) for record in timed])
            known = self._encoder.design([canonical(self._encoder.space, record.strategy) for record in timed])
            usual = float(np.exp(np.median(np.log(spent) - model.predict(known)[0])))
            model.fit(known, spent / usual)
        return np.asarray(usual * np.exp(model.predict(design)[0]))

    def _design(self, evidence: Sequence[Evidence]) -> Design:
        return self._encoder.design([item.strategy for item in evidence], [item.source for item in evidence])

    def _curve(self) -> AccuracyCurve:
        """From this study's episodes alone: what accuracy is left at a divergence is the task's."""
        baseline = self._baseline.accuracy if self._baseline else 1.0
        log_kl, accuracy, noise = [], [], []
        for record in self._history:
            kl, read = kl_of(record), accuracy_of(record)
            if kl is not None and read is not None and not record.strategy.is_baseline:
                log_kl.append(math.log(max(LEAST_KL, kl)))
                accuracy.append(read[0])
                noise.append(max(_LEAST_ACCURACY_NOISE, read[1]))
        return AccuracyCurve(baseline, np.array(log_kl), np.array(accuracy), np.array(noise))

    def _cost(self, name: str) -> CostModel:
        model = CostModel(name, self._encoder.columns)
        rows = [item for item in self._evidence if name in item.ratios]
        ratios = np.array([item.ratios[name] for item in rows])
        model.fit(self._design(rows), ratios, np.array([_ELSEWHERE[name] * item.doubt for item in rows]))
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

    def _allowed(self, forecast: Forecast) -> Array:
        """Probability of satisfying the study's constraints; those in units only once there is a baseline in units."""
        from scipy.special import ndtr

        baseline, found = self._baseline or _UNIT, np.ones(len(forecast.accuracy))
        for constraint in self._situation.constraints:
            sign = 1.0 if constraint.operator == "<=" else -1.0
            relative = constraint.quantity in {"accuracy_drop", "size_ratio"}
            if self._baseline is None and not relative:
                continue
            if constraint.quantity in {"accuracy", "accuracy_drop"}:
                values = 1 - forecast.losses
                values = baseline.accuracy - values if relative else values
                inside = ndtr(sign * (constraint.bound - values) / max(forecast.scatter, 1e-6))
                found *= inside.mean(axis=1)
                continue
            name = "model_size_gb" if relative else constraint.quantity
            bound = constraint.bound * (baseline.model_size_gb if relative else 1.0)
            distance = math.log(max(bound, 1e-12)) - np.log(forecast.costs[name])
            found *= ndtr(sign * distance / forecast.spread[name])
        return found


_UNIT = Objectives(accuracy=1.0, latency_ms=1.0, memory_gb=1.0, model_size_gb=1.0, co2_grams=1.0)


def _seconds(record: EpisodeRecord) -> float:
    return record.timings.get("total", 0.0)
