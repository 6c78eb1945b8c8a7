"""What the optimizer expects of given strategies, as proportions of the baseline, and how well that serves the wish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

from agentic_compression.agent.desk import Desk
from agentic_compression.agent.plan import Outlook, Triple
from agentic_compression.agent.wish import Goal
from agentic_compression.pareto import COST_FACTOR
from agentic_compression.planning.greybox import GreyboxPlanner
from agentic_compression.planning.grid import canonical, tried_keys
from agentic_compression.records import (
    Constraint,
    EpisodeRecord,
    Expected,
    Objectives,
    Strategy,
)

__all__ = ["expectations", "loss_of", "outlook_of", "proportions"]

_RATIO_OF: dict[Goal, str] = {
    "latency_ms": "latency_ratio",
    "memory_gb": "memory_ratio",
    "model_size_gb": "size_ratio",
    "co2_grams": "co2_ratio",
}
_UNIT = Objectives(accuracy=1.0, latency_ms=1.0, memory_gb=1.0, model_size_gb=1.0, co2_grams=1.0)


def expectations(desk: Desk, strategies: Sequence[Strategy], records: Sequence[EpisodeRecord]) -> dict[str, Expected]:
    """The optimizer's expectations by key of the canonical form; none of what was tried or is not legal."""
    space = desk.healing_space
    tried = tried_keys(space, records)
    legal = [canonical(space, strategy) for strategy in strategies if space.problem_with(strategy) is None]
    open_ = {strategy.key: strategy for strategy in legal if strategy.key not in tried}
    situation = desk.situation(desk.baseline(records))
    expected = GreyboxPlanner().forecast(space, list(open_.values()), records, situation)
    return dict(zip(open_, expected, strict=True))


def outlook_of(desk: Desk, expected: Expected, baseline: Objectives | None) -> Outlook:
    """An expectation in proportion to the baseline, with its chance and merit.

    Args:
        desk: wish and constraints.
        expected: of the optimizer, with all five objectives.
        baseline: measured; None where every objective of it counts as 1.
    """
    whole = baseline or _UNIT
    accuracy = expected["accuracy"]
    drop = (whole.accuracy - accuracy[0], whole.accuracy - accuracy[2], whole.accuracy - accuracy[1])
    ratios: dict[str, Triple] = {}
    for objective, name in _RATIO_OF.items():
        unit = float(getattr(whole, objective)) or 1.0
        value, low, high = expected[objective]
        ratios[name] = (value / unit, low / unit, high / unit)
    chance = math.prod(_holds(item, expected, whole) for item in desk.constraints(baseline))
    values = {"accuracy_drop": drop[0], **{name: triple[0] for name, triple in ratios.items()}}
    return Outlook(accuracy_drop=drop, chance=chance, merit=chance * (1 - loss_of(values, desk.wish.weights)), **ratios)


def proportions(objectives: Objectives, baseline: Objectives) -> dict[str, float]:
    """What was measured, in the terms of an outlook."""
    found = {"accuracy_drop": baseline.accuracy - objectives.accuracy}
    for objective, name in _RATIO_OF.items():
        unit = float(getattr(baseline, objective))
        if unit > 0:
            found[name] = float(getattr(objectives, objective)) / unit
    return found


def loss_of(values: dict[str, float], weights: dict[Goal, float]) -> float:
    """Weighted loss: the drop of accuracy, and every cost as a share of the reference point's; lower is better."""
    loss = weights["accuracy"] * max(0.0, values["accuracy_drop"])
    return loss + sum(weights[goal] * values.get(name, 1.0) / COST_FACTOR for goal, name in _RATIO_OF.items())


def _holds(constraint: Constraint, expected: Expected, baseline: Objectives) -> float:
    """The chance that one constraint holds: accuracy normal, costs log-normal, by their 95 % intervals."""
    normal, sign = NormalDist(), 1.0 if constraint.operator == "<=" else -1.0
    if constraint.quantity in {"accuracy", "accuracy_drop"}:
        value, low, high = expected["accuracy"]
        if constraint.quantity == "accuracy_drop":
            value = baseline.accuracy - value
        spread = max((high - low) / 3.92, 1e-6)
        return normal.cdf(sign * (constraint.bound - value) / spread)
    ratio = constraint.quantity == "size_ratio"
    bound = constraint.bound * (baseline.model_size_gb if ratio else 1.0)
    value, low, high = expected["model_size_gb" if ratio else constraint.quantity]
    spread = max(math.log(max(high, 1e-12) / max(low, 1e-12)) / 3.92, 1e-6)
    return normal.cdf(sign * math.log(max(bound, 1e-12) / max(value, 1e-12)) / spread)
