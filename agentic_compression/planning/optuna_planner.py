"""Search by Optuna's samplers: TPE, GP and NSGA-II over the conditional space of strategies.

Papers: TPE, Bergstra et al. 2011, multi-objective form Ozaki et al. 2022; GP with expected hypervolume improvement,
Daulton et al. 2020; NSGA-II, Deb et al. 2002.

The samplers see accuracy (up) and model size (down), which are the same on every run. Latency, memory and energy are
noisy measurements: a search that read them would not propose the same strategies twice. They are left to the frontier.

A proposal is a pure function of (space, history, seed): the sampler is made anew for each, seeded by the seed and the
number of recorded episodes, and asked in a working study that holds the recorded trials in the order of the episodes,
whether these were in the journal already or have just been added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentic_compression.planning.encoding import Encoding
from agentic_compression.planning.grid import StrategyGrid, tried_keys
from agentic_compression.planning.mirror import DIRECTIONS, OptunaMirror, quiet_optuna
from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace, Situation, Strategy, content_digest

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
    attempts: int  # questions before an untried strategy is drawn at random
    replay: bool  # the sampler keeps state in trials it was asked for, so that they must be asked for again
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
        ordered = sorted(history, key=lambda record: record.episode)
        with quiet_optuna():
            mirror = OptunaMirror(Encoding(space, self._search.conditional), self._path)
            trials = mirror.recorded(ordered)
            fallback = grid.draw_untried(tried, (seed, len(ordered)))
            if fallback is None:
                reason = f"all {grid.count} strategies were tried"
                return Proposal(end="search_space_exhausted", source=self.name, rationale=reason)
            strategy, rationale = self._ask(space, trials, tried, _sampler_seed(seed, len(ordered)))
            if strategy is None:
                strategy = fallback
            mirror.asked(strategy)
        return Proposal(strategy=strategy, source=self.name, rationale=rationale)

    def _ask(
        self, space: SearchSpace, trials: Sequence[FrozenTrial], tried: frozenset[str], seed: int
    ) -> tuple[Strategy | None, str]:
        search, encoding = self._search, Encoding(space, self._search.conditional)
        measured = sum(trial.values is not None for trial in trials)
        study = _working_study(search, trials, seed)
        for _ in range(search.attempts):
            trial = study.ask()
            strategy = encoding.suggest(trial)
            if not strategy.is_baseline and strategy.key not in tried:
                return strategy, _rationale(search, measured)
            study.tell(trial, state=_failed_state())
        return None, f"{search.name}: its {search.attempts} suggestions had all been tried, so an untried one was drawn"


def tpe_planner(storage_path: Path | None = None) -> OptunaPlanner:
    """Multi-objective tree-structured Parzen estimators, jointly over each group of parameters that occur together."""

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=_STARTUP, multivariate=True, group=True, constant_liar=False)

    idea = "likelier among the better than among the worse trade-offs of accuracy and size"
    return OptunaPlanner(_Search("tpe", sampler, True, _STARTUP, 24, False, idea), storage_path)


def gp_planner(storage_path: Path | None = None) -> OptunaPlanner:
    """Gaussian processes with expected hypervolume improvement, over the flat encoding."""

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)

    idea = "the largest expected gain in hypervolume of accuracy and size"
    return OptunaPlanner(_Search("gp", sampler, False, _STARTUP, 2, False, idea), storage_path)


def nsga2_planner(storage_path: Path | None = None) -> OptunaPlanner:
    """NSGA-II: crossover and mutation of the non-dominated strategies, over the flat encoding."""

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(seed=seed, population_size=_POPULATION)

    idea = "a crossover of strategies that are not dominated in accuracy and size"
    return OptunaPlanner(_Search("nsga2", sampler, False, _POPULATION, 24, True, idea), storage_path)


def _working_study(search: _Search, trials: Sequence[FrozenTrial], seed: int) -> Study:
    import optuna

    study = optuna.create_study(directions=list(DIRECTIONS), sampler=search.sampler(seed))
    if not search.replay:
        study.add_trials(trials)
        return study
    for trial in trials:
        study.enqueue_trial(trial.params)
        asked = study.ask(fixed_distributions=dict(trial.distributions))
        study.tell(asked, values=trial.values, state=trial.state)
    return study


def _rationale(search: _Search, measured: int) -> str:
    if measured < search.startup:
        return f"{search.name}: drawn at random, {measured} results are too few to learn from (needs {search.startup})"
    return f"{search.name}: judged from {measured} results, {search.idea}"


def _sampler_seed(seed: int, episodes: int) -> int:
    return int(content_digest([seed, episodes])[:8], 16) % 2**31


def _failed_state() -> object:
    from optuna.trial import TrialState

    return TrialState.FAIL
