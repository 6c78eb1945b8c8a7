"""Which solution each alias would point at, by the policy's rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentic_compression.records import AliasRule, Objectives, PromotionPolicy, Solution

__all__ = ["choose_aliases", "cost", "ranked"]


def choose_aliases(solutions: Sequence[Solution], policy: PromotionPolicy | None = None) -> dict[str, int]:
    """Which episode each alias would point at if nothing held it.

    Only solutions that satisfy the study's constraints take part.
    """
    rules = (policy or PromotionPolicy()).aliases
    orders = {alias: ranked(solutions, rule) for alias, rule in rules.items()}
    return {alias: order[0].episode for alias, order in orders.items() if order}


def ranked(solutions: Sequence[Solution], rule: AliasRule) -> list[Solution]:
    """The solutions that satisfy the constraints, those that suit the alias best first.

    For ``knee`` that is the frontier's knee, then whatever is next closest to the perfect corner, accuracy weighing as
    much as the four costs together. Ties go to the more accurate, then to the smaller, then to the earlier episode.
    """
    eligible = [solution for solution in solutions if solution.meets_constraints]
    if rule.by == "knee":
        far = _distance(eligible)
        return sorted(eligible, key=lambda item: (not item.is_knee, far(item), *_tie_break(item)))
    value = _weighted(eligible, rule) if rule.by == "weights" else lambda item: cost(item.objectives, rule.by)
    return sorted(eligible, key=lambda item: (value(item), *_tie_break(item)))


def cost(objectives: Objectives, name: str) -> float:
    """An objective as a cost: the lower the better."""
    value = float(getattr(objectives, name))
    return -value if name == "accuracy" else value


def _weighted(solutions: Sequence[Solution], rule: AliasRule) -> Callable[[Solution], float]:
    """The weighted mean of the scaled costs."""
    scaled, total = _scaled(solutions), sum(rule.weights.values())

    def loss(solution: Solution) -> float:
        return round(sum(weight * scaled(solution, name) for name, weight in rule.weights.items()) / total, 12)

    return loss


def _distance(solutions: Sequence[Solution]) -> Callable[[Solution], float]:
    """Squared distance from the perfect corner, as ``frontier.knee_of`` has it but for the noise."""
    scaled, costs = _scaled(solutions), [name for name in Objectives.model_fields if name != "accuracy"]

    def distance(solution: Solution) -> float:
        far = sum(scaled(solution, name) ** 2 for name in costs) / len(costs)
        return round(scaled(solution, "accuracy") ** 2 + far, 12)

    return distance


def _scaled(solutions: Sequence[Solution]) -> Callable[[Solution, str], float]:
    """Costs in [0, 1] between the best and the worst of these solutions; 0 where all are alike."""
    columns = {name: [cost(item.objectives, name) for item in solutions] for name in Objectives.model_fields}

    def value(solution: Solution, name: str) -> float:
        low, high = min(columns[name]), max(columns[name])
        return (cost(solution.objectives, name) - low) / (high - low) if high > low else 0.0

    return value


def _tie_break(solution: Solution) -> tuple[float, float, int]:
    return (-solution.objectives.accuracy, solution.objectives.model_size_gb, solution.episode)
