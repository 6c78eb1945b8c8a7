"""Search by Optuna's samplers: TPE, GP and NSGA-II over the conditional space of strategies.

Papers: TPE, Bergstra et al. 2011, multi-objective form Ozaki et al. 2022; GP with expected hypervolume improvement,
Daulton et al. 2020; NSGA-II, Deb et al. 2002.

TPE and NSGA-II are told all five objectives. For GP that is too slow: expected improvement over five objectives takes 9
to 37 s of CPU a proposal at 40 episodes of the whole search space, because it cuts the space beyond the frontier into
boxes. GP is told two, accuracy and the mean of the four costs, each over its baseline's, which holds all that was
measured. What a study's constraints are broken by, and that an episode failed or was rejected, the samplers are told as
constraints of the trial (see ``mirror.told_of``). Until enough was measured to learn from, failures are kept from them:
a sampler that knows nothing but failures would search beside the least bad of them.

Latency, memory and CO2 are measurements with noise, so two runs of one study may propose different strategies. The same
history always gives the same proposal: it is a pure function of (space, history, seed, constraints). The sampler is
made anew for each, seeded by the seed and the number of recorded episodes, and asked in a working study that holds the
recorded trials in the order of the episodes, whether these were in the journal already or have just been added.

A sampler may name what was tried over and over, because it does not know that a result is certain. After a few
questions the nearest untried neighbour of its last suggestion is proposed, one or more steps of a parameter away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentic_compression.pareto import NAMES
from agentic_compression.planning.encoding import Encoding
from agentic_compression.planning.grid import StrategyGrid, tried_keys
from agentic_compression.planning.mirror import CARRIED_OUT, DIRECTIONS, OptunaMirror, quiet_optuna
from agentic_compression.planning.nearest import nearest_untried
from agentic_compression.planning.reward import baseline_objectives
from agentic_compression.records import (
    EpisodeRecord,
    Objectives,
    Proposal,
    SearchSpace,
    Situation,
    Strategy,
    content_digest,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

__all__ = ["OptunaPlanner", "gp_planner", "nsga2_planner", "tpe_planner"]

_STARTUP = 5  # measured strategies before a model is fitted; Optuna's own default of 10 is a whole study here
_POPULATION = 8


class _Search(NamedTuple):
    """One of Optuna's samplers and how it must be asked."""

    name: str
    sampler: Callable[[int], BaseSampler]
    conditional: bool
    startup: int
    attempts: int  # questions before a neighbour of what it suggests is looked for
    replay: bool  # the sampler keeps state in trials it was asked for, so that they must be asked for again
    merged: bool  # it is told accuracy and one mean cost instead of five objectives
    idea: str


class OptunaPlanner:
    """A planner over one of Optuna's samplers.

    Args:
        search: the sampler and its ways.
        storage_path: journal file of the mirror; in memory when None.
    """

    def __init__(self, search: _Search, storage_path: Path | None = None) -> None:
        self._search, self._path = search, storage_path
        self.name = search.name

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """The sampler's next untried strategy; see ``Planner``."""
        grid, tried = StrategyGrid(space), tried_keys(space, history)
        constraints = situation.constraints if situation else ()
        with quiet_optuna():
            mirror = OptunaMirror(Encoding(space, self._search.conditional), self._path, constraints)
            trials = mirror.recorded(history)
            fallback = grid.draw_untried(tried, (seed, len(history)))
            if fallback is None:
                reason = f"all {grid.count} strategies were tried"
                return Proposal(end="search_space_exhausted", source=self.name, rationale=reason)
            learned = _learned(self._search, trials, baseline_objectives(history))
            strategy, how = self._ask(space, learned, tried, _sampler_seed(seed, len(history)))
            if strategy is None:
                strategy = fallback
            mirror.asked(strategy)
        return Proposal(strategy=strategy, source=self.name, rationale=f"{self.name}: {how}")

    def _ask(
        self, space: SearchSpace, trials: Sequence[FrozenTrial], tried: frozenset[str], seed: int
    ) -> tuple[Strategy | None, str]:
        search, encoding = self._search, Encoding(space, self._search.conditional)
        study, suggested = _working_study(search, trials, seed), dict[str, Strategy]()
        for _ in range(search.attempts):
            trial = study.ask()
            strategy = encoding.suggest(trial)
            if not strategy.is_baseline and strategy.key not in tried:
                return strategy, _reason(search, trials)
            suggested.pop(strategy.key, None)
            suggested[strategy.key] = strategy
            study.tell(trial, state=_failed_state())
        repeated = f"its {search.attempts} suggestions had all been tried"
        for last in reversed(suggested.values()):
            if near := nearest_untried(space, last, tried):
                chosen = random.Random(seed).choice(near)  # noqa: S311 - a search, not a secret
                return chosen, f"{_reason(search, trials)}; {repeated}: the nearest untried to {space.brief(last)}"
        return None, f"{repeated} and all beside them, so an untried strategy was drawn at random"


def tpe_planner(storage_path: Path | None = None) -> OptunaPlanner:
    """Multi-objective tree-structured Parzen estimators, jointly over each group of parameters that occur together."""

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=_STARTUP, multivariate=True, group=True, constant_liar=False)

    idea = "likelier among the better than among the worse trade-offs of the five objectives"
    search = _Search("tpe", sampler, True, _STARTUP, attempts=24, replay=False, merged=False, idea=idea)
    return OptunaPlanner(search, storage_path)


def gp_planner(storage_path: Path | None = None) -> OptunaPlanner:
    """Gaussian processes with expected hypervolume improvement, over the flat encoding."""

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)

    idea = "the largest expected gain in hypervolume of accuracy and the mean cost"
    search = _Search("gp", sampler, False, _STARTUP, attempts=2, replay=False, merged=True, idea=idea)
    return OptunaPlanner(search, storage_path)


def nsga2_planner(storage_path: Path | None = None) -> OptunaPlanner:
    """NSGA-II: crossover and mutation of the non-dominated strategies, over the flat encoding."""

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=seed, population_size=_POPULATION)

    idea = "a crossover of strategies that are not dominated in the five objectives"
    search = _Search("nsga2", sampler, False, _POPULATION, attempts=24, replay=True, merged=False, idea=idea)
    return OptunaPlanner(search, storage_path)


def _learned(search: _Search, trials: Sequence[FrozenTrial], baseline: Objectives | None) -> list[FrozenTrial]:
    """The trials as the sampler is to see them, constraints that no trial breaks left out."""
    import optuna

    shown = [trial for trial in trials if trial.values is not None]
    if _measured(shown) < search.startup:
        shown = [trial for trial in shown if not trial.constraints[CARRIED_OUT] > 0]
    broken = {name for trial in shown for name, value in trial.constraints.items() if value > 0}
    return [
        optuna.trial.create_trial(
            values=_merged(trial.values, baseline) if search.merged else trial.values,
            params=trial.params,
            distributions=trial.distributions,
            constraints={name: value for name, value in trial.constraints.items() if name in broken}
            if broken
            else None,
        )
        for trial in shown
    ]


def _merged(values: Sequence[float], baseline: Objectives | None) -> tuple[float, float]:
    """Accuracy, and the mean of the costs over the baseline's; a baseline of 0 leaves a cost as it is."""
    whole = [float(getattr(baseline, name)) or 1.0 if baseline else 1.0 for name in NAMES[1:]]
    ratios = [value / unit for value, unit in zip(values[1:], whole, strict=True)]
    return values[0], sum(ratios) / len(ratios)


def _working_study(search: _Search, trials: Sequence[FrozenTrial], seed: int) -> Study:
    import optuna

    directions = list(DIRECTIONS[:2] if search.merged else DIRECTIONS)
    study = optuna.create_study(directions=directions, sampler=search.sampler(seed))
    if not search.replay:
        study.add_trials(trials)
        return study
    for trial in trials:
        study.enqueue_trial(trial.params)
        asked = study.ask(fixed_distributions=dict(trial.distributions))
        _ = asked.relative_params  # the sampler numbers a trial's generation only when it is asked for these
        for name, value in trial.constraints.items():
            asked.set_constraint(name, value)
        study.tell(asked, values=trial.values)
    return study


def _measured(trials: Sequence[FrozenTrial]) -> int:
    return sum(trial.constraints.get(CARRIED_OUT, 0.0) <= 0 for trial in trials)


def _reason(search: _Search, trials: Sequence[FrozenTrial]) -> str:
    measured = _measured(trials)
    if measured < search.startup:
        return f"drawn at random, {measured} results are too few to learn from (needs {search.startup})"
    others = len(trials) - measured
    without = f" and {others} episodes without a full result" if others else ""
    return f"judged from {measured} results{without}, {search.idea}"


def _sampler_seed(seed: int, episodes: int) -> int:
    return int(content_digest([seed, episodes])[:8], 16) % 2**31


def _failed_state() -> object:
    from optuna.trial import TrialState

    return TrialState.FAIL
