"""Optuna's samplers as they come: default settings, one study asked and told in order, all five objectives.

A strategy that was tried already costs no episode: the sampler is told the same values again and asked on, up to a
limit, so that what it loses to a space without repetition is not held against it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from agentic_compression.planning.encoding import Encoding
from agentic_compression.planning.grid import StrategyGrid, tried_keys
from agentic_compression.planning.interface import Planner
from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace, Situation

__all__ = ["STOCK", "stock_planner"]

_ASKS = 40
_DIRECTIONS = ("maximize", "minimize", "minimize", "minimize", "minimize")

_SAMPLERS: dict[str, tuple[Callable[[int], Any], bool]] = {
    "stock-tpe": (lambda seed: optuna.samplers.TPESampler(seed=seed), True),
    "stock-gp": (lambda seed: optuna.samplers.GPSampler(seed=seed), False),
    "stock-nsga2": (lambda seed: optuna.samplers.NSGAIISampler(seed=seed), False),
}
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
        make, conditional = _SAMPLERS[self.name]
        encoding = Encoding(space, conditional)
        if self._study is None:
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            self._study = optuna.create_study(directions=list(_DIRECTIONS), sampler=make(seed))
        values = {record.strategy.key: _values(record) for record in history}
        self._tell(encoding, history)
        tried = tried_keys(space, history)
        for _ in range(_ASKS):
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

    def _tell(self, encoding: Encoding, history: Sequence[EpisodeRecord]) -> None:
        assert self._study is not None
        for record in history[self._told :]:
            trial = self._asked.pop(record.strategy.key, None)
            if trial is not None:
                self._finish(trial, _values(record))
            elif (encoded := encoding.encode(record.strategy)) is not None and (values := _values(record)) is not None:
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


def _values(record: EpisodeRecord) -> tuple[float, ...] | None:
    found = record.objectives
    if found is None:
        return None
    return found.accuracy, found.latency_ms, found.memory_gb, found.model_size_gb, found.co2_grams
