r"""Which strategies earlier studies speak for, with the reasons.

A strategy's score is what one measurement of it is worth, averaged over the recalled experiences by weight, with half
an observation worth nothing added so that little evidence scores low:

.. math:: score = \sum_i w_i v_i / (\sum_i w_i + 0.5)

The worth :math:`v` of one that succeeded is the share of the reference box that it covers: the accuracy it kept (at
most 1) times :math:`1 - r / 2` for each known ratio :math:`r` of a cost, as the frontier's hypervolume counts it; a
cost that is not known counts as the baseline's. One that failed is worth 0, and so is one that breaks a constraint
which can be told from proportions (``accuracy_drop``, ``size_ratio``). Rejected ones were not measured and are left
out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from pydantic import Field

from agentic_compression.memory.validation import COSTS
from agentic_compression.pareto import COST_FACTOR
from agentic_compression.records import Constraint, Experience, Recalled, Record, Strategy

__all__ = ["Recommendation", "recommend", "worth"]

_PRIOR = 0.5
_CONTRADICTED = 0.75
_LABELS = {"latency_ms": "latency", "memory_gb": "memory", "model_size_gb": "size", "co2_grams": "CO2"}


class Recommendation(Record):
    """A strategy that did well in similar situations."""

    strategy: Strategy
    score: float = Field(ge=0, le=1, description="mean worth by weight, with half an observation of nothing added")
    n: int = Field(ge=1, description="experiences behind it, failures included")
    studies: tuple[str, ...]
    similarity: float = Field(ge=0, le=1, description="of the most similar of them")
    succeeded: float = Field(ge=0, le=1, description="share of them, by weight")
    accuracy_drop: float | None = Field(default=None, description="mean by weight of baseline minus candidate")
    accuracy_drop_spread: float = Field(default=0.0, ge=0, description="standard deviation by weight")
    ratios: dict[str, float] = Field(default_factory=dict, description="geometric means by weight, of the baseline's")
    contradicted: int = Field(default=0, ge=0, description="of them lost a quarter of their weight or more")
    reasons: tuple[str, ...] = Field(description="the same in words")


def recommend(
    recalled: Sequence[Recalled], constraints: Sequence[Constraint] = (), limit: int = 5
) -> tuple[Recommendation, ...]:
    """The best strategies of what was recalled, by falling score; those that never worked are left out.

    Args:
        recalled: experiences with their weights.
        constraints: of the new study.
        limit: at most so many.
    """
    groups: dict[str, list[Recalled]] = defaultdict(list)
    for item in recalled:
        if item.experience.status != "rejected":
            groups[item.experience.strategy.label].append(item)
    found = [_recommendation(group, constraints) for _, group in sorted(groups.items())]
    useful = [item for item in found if item.score > 0]
    return tuple(sorted(useful, key=lambda item: (-item.score, item.strategy.label))[:limit])


def worth(experience: Experience, constraints: Sequence[Constraint] = ()) -> float:
    """The share of the reference box that one experience covers, in [0, 1]; see the module."""
    if experience.status != "succeeded" or experience.accuracy is None or not experience.baseline_accuracy:
        return 0.0
    if not all(_holds(experience, constraint) for constraint in constraints):
        return 0.0
    value = min(1.0, experience.accuracy / experience.baseline_accuracy)
    for name in COSTS:
        value *= max(0.0, 1 - experience.ratios.get(name, 1.0) / COST_FACTOR)
    return value


def _holds(experience: Experience, constraint: Constraint) -> bool:
    """Whether proportions satisfy it; bounds in absolute units say nothing about another model."""
    if constraint.quantity == "accuracy_drop":
        value = _drop(experience)
    elif constraint.quantity == "size_ratio":
        value = experience.ratios.get("model_size_gb")
    else:
        return True
    if value is None:
        return True
    return value <= constraint.bound if constraint.operator == "<=" else value >= constraint.bound


def _recommendation(group: Sequence[Recalled], constraints: Sequence[Constraint]) -> Recommendation:
    total = sum(item.weight for item in group)
    worths = [worth(item.experience, constraints) for item in group]
    well = [item for item in group if item.experience.status == "succeeded"]
    drops = [(item.weight, drop) for item in well if (drop := _drop(item.experience)) is not None]
    mean, spread = _mean(drops)
    ratios = {}
    for name in COSTS:
        logs = [
            (item.weight, math.log(item.experience.ratios[name])) for item in well if name in item.experience.ratios
        ]
        if logs:
            ratios[name] = math.exp(_mean(logs)[0])
    found = Recommendation(
        strategy=group[0].experience.strategy,
        score=sum(item.weight * value for item, value in zip(group, worths, strict=True)) / (total + _PRIOR),
        n=len(group),
        studies=tuple(sorted({item.experience.study for item in group})),
        similarity=max(item.similarity for item in group),
        succeeded=min(1.0, sum(item.weight for item in well) / total) if total else 0.0,
        accuracy_drop=mean if drops else None,
        accuracy_drop_spread=spread,
        ratios=ratios,
        contradicted=sum(item.weight <= _CONTRADICTED * item.similarity for item in group),
        reasons=("",),
    )
    broken = sum(
        item.experience.status == "succeeded" and value == 0 for item, value in zip(group, worths, strict=True)
    )
    return found.model_copy(update={"reasons": tuple(_reasons(found, group, broken if constraints else 0))})


def _reasons(found: Recommendation, group: Sequence[Recalled], broken: int) -> Iterable[str]:
    models = sorted({item.experience.model for item in group})
    named = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
    yield f"{_counted(found.n, 'experience')} of {_counted(len(found.studies), 'study', 'studies')} with {named}"
    yield f"similarity up to {found.similarity:.2f}"
    if found.accuracy_drop is not None:
        spread = f"standard deviation {found.accuracy_drop_spread:.3f}"
        yield f"loss of accuracy {found.accuracy_drop:.3f} on average ({spread})"
    if found.ratios:
        yield "of the baseline's: " + ", ".join(f"{_LABELS[name]} {value:.2f}" for name, value in found.ratios.items())
    if failures := sorted(item.experience.status for item in group if item.experience.status != "succeeded"):
        yield f"{_counted(len(failures), 'failure')}: {', '.join(sorted(set(failures)))}"
    if broken:
        yield f"{broken} of them broke a constraint"
    if found.contradicted:
        yield f"{found.contradicted} of them contradicted by other studies"


def _counted(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or f'{singular}s'}"


def _drop(experience: Experience) -> float | None:
    if experience.accuracy is None or experience.baseline_accuracy is None:
        return None
    return experience.baseline_accuracy - experience.accuracy


def _mean(weighted: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation by weight; 0 and 0 of nothing."""
    total = sum(weight for weight, _ in weighted)
    if total <= 0:
        return 0.0, 0.0
    mean = sum(weight * value for weight, value in weighted) / total
    variance = sum(weight * (value - mean) ** 2 for weight, value in weighted) / total
    return mean, math.sqrt(max(0.0, variance))
