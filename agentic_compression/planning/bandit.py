"""A bandit over method sequences: Thompson sampling chooses what to do, a local search how.

An arm is a sequence of methods, such as ``drop_channels | gguf``. The mean reward of an arm is modelled as the sum of a
common level, an effect of each of its methods and one of its own, all Gaussian, so that an arm that was never tried is
judged by those that share a method with it (linear Thompson sampling, Agrawal and Goyal 2013, the arm's methods being
its context). One draw from the posterior decides; an arm is chosen as often as it may be the best.

The reward is that of ``planning.reward``, under weights of the objectives that are drawn for each proposal (random
scalarisation, Paria et al. 2020): one fixed compromise would be searched around for ever, and the frontier has other
ends. Because the same strategy adds less hypervolume the later it comes, rewards age: an old one counts as a noisier
one. Failures have the lowest reward, and the first episodes met an empty frontier: neither is Gaussian, so the model
takes no reward for further from the median than ``_BELOW`` and ``_ABOVE``. A method that failed once is avoided and
not lost, and one that came first is not preferred for ever.

Inside the arm, an untried setting is drawn uniformly while the arm is new; then the search takes the nearest untried
neighbours, on the parameters' grid, of the arm's best, by the reward that each would have if it came last.

Everything is derived from the history; the draws are fixed by the seed and the number of recorded episodes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from agentic_compression.pareto import NAMES
from agentic_compression.planning.grid import StrategyGrid, canonical, tried_keys
from agentic_compression.planning.moves import is_legal, sequence_of
from agentic_compression.planning.nearest import nearest_untried
from agentic_compression.planning.reward import LOWEST, present_rewards, rewards
from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace, Situation, Stage, Strategy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["Arm", "BanditPlanner", "bandit_planner", "drawn_weights"]

Arm = tuple[str, ...]

_MOST_ARMS = 2000  # of spaces with more sequences, the shortest and those beside what was tried
_NEW = 2  # settings of an arm before its best is searched around
_METHOD, _OWN, _NOISE = 0.05, 0.02, 0.03  # standard deviations of the effects, in the unit of the reward
_BELOW, _ABOVE = 0.25, 0.1  # the median of the measured: how far from it the model takes a reward to be
_AGEING = 0.97  # weight of a reward that is one episode older
_DRAWS = 64


class BanditPlanner:
    """Thompson sampling over method sequences, local search over their parameters."""

    name = "bandit"

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """An untried setting of the sequence that the draw favours; see ``Planner``."""
        grid, tried = StrategyGrid(space), tried_keys(space, history)
        draw = random.Random(f"bandit {seed} {len(history)}")  # noqa: S311 - a search, not a secret
        constraints = situation.constraints if situation else ()
        weights = drawn_weights(draw)
        earned, present = rewards(history, constraints, weights), present_rewards(history, constraints, weights)
        pulls = _pulls(space, history, earned, present)
        arms = _open_arms(grid, pulls)
        for arm, value in _ranked(arms, pulls, seed, len(history)):
            strategy, how = _setting(grid, arm, [pull for pull in pulls if pull.arm == arm], tried, draw)
            if strategy is not None:
                rationale = f"bandit: {' | '.join(arm)} drawn at reward {value:.2f} of {len(arms)} sequences; {how}"
                return Proposal(strategy=strategy, source=self.name, rationale=rationale)
        left = grid.draw_untried(tried, (seed, len(history)))
        if left is None:
            reason = f"all {grid.count} strategies were tried"
            return Proposal(end="search_space_exhausted", source=self.name, rationale=reason)
        return Proposal(strategy=left, source=self.name, rationale="bandit: no sequence has one left, so one was drawn")


def drawn_weights(draw: random.Random) -> dict[str, float]:
    """Weights of the objectives, of sum 1: accuracy's about a half, the costs' uniform over what is left."""
    accuracy, costs = draw.betavariate(2, 2), [draw.expovariate(1.0) for _ in NAMES[1:]]
    return {"accuracy": accuracy} | {
        name: (1 - accuracy) * cost / sum(costs) for name, cost in zip(NAMES[1:], costs, strict=True)
    }


def bandit_planner(storage_path: Path | None = None) -> BanditPlanner:
    """The planner; it keeps no file."""
    return BanditPlanner()


@dataclass(frozen=True)
class _Pull:
    """One recorded episode: what was tried, its reward when it came, and what it would be if it came now."""

    strategy: Strategy
    reward: float
    present: float
    age: int

    @property
    def arm(self) -> Arm:
        return sequence_of(self.strategy)


def _pulls(
    space: SearchSpace, history: Sequence[EpisodeRecord], earned: dict[int, float], present: dict[int, float]
) -> list[_Pull]:
    """By rising episode; those of which nothing is known, or that this space does not offer, teach nothing."""
    known = sorted((r for r in history if r.episode in earned), key=lambda record: record.episode)
    found = []
    for age, record in enumerate(reversed(known)):
        strategy = canonical(space, record.strategy)
        if is_legal(space, strategy):
            found.append(_Pull(strategy, earned[record.episode], present[record.episode], age))
    return found[::-1]


def _open_arms(grid: StrategyGrid, pulls: Sequence[_Pull]) -> list[Arm]:
    """Legal sequences that may have an untried setting left: the shorter ones first, and what was tried."""
    arms = dict.fromkeys(_sequences(grid.space, _MOST_ARMS))
    if len(arms) >= _MOST_ARMS:
        for arm in {pull.arm: None for pull in pulls}:
            arms |= dict.fromkeys([arm, *_extended(grid.space, arm)])
    counts: dict[Arm, set[str]] = {}
    for pull in pulls:
        counts.setdefault(pull.arm, set()).add(pull.strategy.key)
    return [arm for arm in arms if len(counts.get(arm, ())) < prod(grid.settings(name) for name in arm)]


def _sequences(space: SearchSpace, most: int) -> list[Arm]:
    """Legal sequences by length, at most so many."""
    found: list[Arm] = []
    level: list[Arm] = [()]
    for _ in range(space.max_stages):
        level = [longer for arm in level for longer in _extended(space, arm)]
        found += level[: most - len(found)]
        if len(found) >= most or not level:
            break
    return found


def _extended(space: SearchSpace, arm: Arm) -> list[Arm]:
    if len(arm) >= space.max_stages:
        return []
    before = [method for name in arm if (method := space.method(name))]
    return [(*arm, method.name) for method in space.offered if space.may_come(method, before)]


def _ranked(arms: Sequence[Arm], pulls: Sequence[_Pull], seed: int, episodes: int) -> list[tuple[Arm, float]]:
    """Arms with one draw of their mean rewards, the largest first."""
    import numpy as np

    if not arms:
        return []
    methods = {name: place for place, name in enumerate(dict.fromkeys(name for arm in arms for name in arm))}
    for pull in pulls:
        for name in pull.arm:
            methods.setdefault(name, len(methods))
    own = {arm: len(methods) + place for place, arm in enumerate({pull.arm: None for pull in pulls})}
    size = len(methods) + len(own)
    rows = np.array([_features(pull.arm, methods, own) for pull in pulls]).reshape(-1, size)
    deviations = np.array([_METHOD] * len(methods) + [_OWN] * len(own))
    weights = np.array([_AGEING**pull.age for pull in pulls])
    values: Array = np.array([pull.reward for pull in pulls], dtype=np.float64)
    if (values > LOWEST).any():
        middle = float(np.median(values[values > LOWEST]))
        values = values.clip(middle - _BELOW, middle + _ABOVE)
    level = float(weights @ values / weights.sum()) if len(pulls) else 0.0
    generator = np.random.default_rng([seed, episodes])
    effects = _posterior_draw(rows, values - level, weights / _NOISE**2, deviations, generator)
    alone = generator.normal(0.0, _OWN, len(arms))  # of arms without a feature of their own
    drawn = [
        (arm, level + float(_features(arm, methods, own) @ effects) + (0.0 if arm in own else float(alone[place])))
        for place, arm in enumerate(arms)
    ]
    return sorted(drawn, key=lambda item: (-item[1], item[0]))


def _features(arm: Arm, methods: dict[str, int], own: dict[Arm, int]) -> Array:
    import numpy as np

    row = np.zeros(len(methods) + len(own))
    for name in arm:
        row[methods[name]] += 1.0 / len(arm) ** 0.5
    if arm in own:
        row[own[arm]] = 1.0
    return row


def _posterior_draw(
    rows: Array, values: Array, precisions: Array, deviations: Array, generator: np.random.Generator
) -> Array:
    """A draw of the effects given what was observed of their sums."""
    import numpy as np

    precision = np.diag(1.0 / deviations**2) + rows.T @ (rows * precisions[:, None])
    factor = np.linalg.cholesky(precision)
    mean = np.linalg.solve(precision, rows.T @ (precisions * values))
    drawn = mean + np.linalg.solve(factor.T, generator.normal(size=len(deviations)))
    return np.asarray(drawn, dtype=np.float64)


def _setting(
    grid: StrategyGrid, arm: Arm, pulls: Sequence[_Pull], tried: frozenset[str], draw: random.Random
) -> tuple[Strategy | None, str]:
    """An untried setting of an arm and how it was found."""
    if len(pulls) >= _NEW:
        best = max(pulls, key=lambda pull: pull.present)
        near = nearest_untried(grid.space, best.strategy, tried)
        if near:
            steps = f"{len(near)} untried neighbours of its best, {grid.space.brief(best.strategy)}"
            return draw.choice(near), f"one of {steps}"
    for _ in range(_DRAWS):
        stages: list[Stage] = [grid.stage(name, draw.randrange(grid.settings(name))) for name in arm]
        strategy = Strategy(stages=tuple(stages))
        if strategy.key not in tried:
            return strategy, "its setting drawn uniformly"
    for pull in pulls:
        near = nearest_untried(grid.space, pull.strategy, tried)
        if near:
            return draw.choice(near), "one of the last settings left"
    return None, ""
