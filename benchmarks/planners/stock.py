"""Optuna's samplers as they come: default settings, one study asked and told in order.

All but ``stock-gp-2`` are told the five objectives. A GP that is told five takes minutes a proposal here (Optuna warns
of it); ``stock-gp-2`` is the same sampler told two, accuracy and the mean of the four costs over the baseline's.

A strategy that was tried already costs no episode: the sampler is told the same values again and asked on, up to a
limit, so that what it loses to a space without repetition is not held against it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import optuna

from agentic_compression.planning.encoding import Encoding
from agentic_compression.planning.grid import StrategyGrid, tried_keys
from agentic_compression.planning.interface import Planner
from agentic_compression.records import EpisodeRecord, Objectives, Proposal, SearchSpace, Situation

__all__ = ["STOCK", "stock_planner"]

_ASKS, _GP_ASKS = 40, 4
Told = dict[str, tuple[float, ...] | None]
_DIRECTIONS = ("maximize", "minimize", "minimize", "minimize", "minimize")

_SAMPLERS: dict[str, tuple[Callable[[int], Any], bool, int]] = {
    "stock-tpe": (lambda seed: optuna.samplers.TPESampler(seed=seed), True, 5),
    "stock-gp": (lambda seed: optuna.samplers.GPSampler(seed=seed), False, 5),
    "stock-gp-2": (lambda seed: optuna.samplers.GPSampler(seed=seed), False, 2),
    "stock-nsga2": (lambda seed: optuna.samplers.NSGAIISampler(seed=seed), False, 5),
}
"""Sampler, whether it takes parameters that exist only beside others, and how many objectives it is told."""
STOCK = tuple(_SAMPLERS)


def stock_planner(name: str) -> Planner:
    """A sampler as a planner; one object plays one study."""
    return _Stock(name)


class _Stock:
    def __init__(self, name: str) -> None:
        self.name = name
        self._study: optuna.Study | None = None
        self._told = 0
        self._asked: dict[str, optuna.Trial] = {}

    def propose(
        self, space: SearchSpace, history: Sequence[EpisodeRecord], seed: int, situation: Situation | None = None
    ) -> Proposal:
        """The sampler's next untried strategy."""
        make, conditional, count = _SAMPLERS[self.name]
        encoding = Encoding(space, conditional)
        if self._study is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._study = optuna.create_study(directions=list(_DIRECTIONS[:count]), sampler=make(seed))
        values = _told(history, count)
        self._tell(encoding, history, values)
        tried = tried_keys(space, history)
        for _ in range(_GP_ASKS if "gp" in self.name else _ASKS):
            trial = self._study.ask()
            strategy = encoding.suggest(trial)
            if strategy.key not in tried and not strategy.is_baseline:
                self._asked[strategy.key] = trial
                return Proposal(strategy=strategy, source=self.name)
            self._finish(trial, values.get(strategy.key))
        grid = StrategyGrid(space)
        draw = random.Random(repr((seed, len(history))))
        left = [strategy for strategy in grid if strategy.key not in tried]
        return Proposal(strategy=draw.choice(left), source=self.name)

    def _tell(self, encoding: Encoding, history: Sequence[EpisodeRecord], told: Told) -> None:
        assert self._study is not None
        for record in history[self._told :]:
            trial = self._asked.pop(record.strategy.key, None)
            if trial is not None:
                self._finish(trial, told[record.strategy.key])
            elif (encoded := encoding.encode(record.strategy)) is not None and (values := told[record.strategy.key]):
                parameters, distributions = encoded
                added = optuna.trial.create_trial(params=parameters, distributions=distributions, values=list(values))
                self._study.add_trial(added)
        self._told = len(history)

    def _finish(self, trial: optuna.Trial, values: tuple[float, ...] | None) -> None:
        assert self._study is not None
        if values is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, list(values))


def _told(history: Sequence[EpisodeRecord], count: int) -> Told:
    """What the sampler is told of every episode, by the strategy's key: all five, or accuracy and the mean cost."""
    baseline = next(record.objectives for record in history if record.strategy.is_baseline)
    assert baseline is not None, "a replay begins with a measured baseline"
    whole, found = _five(baseline), dict[str, tuple[float, ...] | None]()
    for record in history:
        values = _five(record.objectives) if record.objectives else None
        if values and count == 2:
            values = values[0], fmean(value / usual for value, usual in zip(values[1:], whole[1:], strict=True))
        found[record.strategy.key] = values
    return found


def _five(found: Objectives) -> tuple[float, ...]:
    return found.accuracy, found.latency_ms, found.memory_gb, found.model_size_gb, found.co2_grams
