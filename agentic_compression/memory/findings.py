"""What held in the experiments so far: claims with n, spread, confidence, provenance and what contradicts them.

A claim is about one method alone, or about two methods one after the other; it is made over all experiments and over
those of each size class and family. Of a claim and its opposite the one that held in more measurements is stated.
Longer strategies are left out, because what they did cannot be put down to one of their methods.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydantic import Field

from agentic_compression.records import Experience, Record

__all__ = ["CLAIMS", "Finding", "findings", "methods_of"]

_KEPT = 0.02  # loss of accuracy up to which it counts as kept


class Finding(Record):
    """A claim about a method or a pair of methods, and how well it is founded."""

    methods: tuple[str, ...] = Field(description="one method, or two in their order")
    scope: str = Field(description="'all', 'size' or 'family'")
    where: str = Field(default="", description="the size class or family")
    quantity: str
    claim: str
    held: int = Field(ge=0, description="measurements in which it held")
    n: int = Field(ge=1, description="measurements that could tell")
    median: float = Field(description="of the quantity over the n measurements")
    spread: float = Field(ge=0, description="its standard deviation")
    low: float
    high: float = Field(description="smallest and largest value")
    studies_held: int = Field(ge=0, description="studies in most of whose measurements it held")
    studies: int = Field(ge=1)
    confidence: float = Field(
        gt=0, lt=1, description="(studies_held + 1) / (studies + 2): chance by Laplace's rule that it holds in the next"
    )
    provenance: dict[str, str] = Field(description="by study, the episodes in which it held")
    contradicted_by: dict[str, str] = Field(default_factory=dict, description="by study, those in which it did not")


@dataclass(frozen=True)
class Claim:
    """What can be said of a quantity."""

    quantity: str
    value: Callable[[Experience], float | None]
    bound: float
    holds: str
    opposite: str


def _finished(experience: Experience) -> float | None:
    return None if experience.status == "rejected" else float(experience.status == "succeeded")


def _drop(experience: Experience) -> float | None:
    if experience.accuracy is None or experience.baseline_accuracy is None:
        return None
    return experience.baseline_accuracy - experience.accuracy


def _ratio(name: str) -> Callable[[Experience], float | None]:
    return lambda experience: experience.ratios.get(name)


CLAIMS = (
    Claim("failed", lambda e: None if _finished(e) is None else 1 - (_finished(e) or 0.0), 0.5, "runs", "fails"),
    Claim(
        "accuracy_drop",
        _drop,
        _KEPT,
        f"keeps accuracy within {_KEPT:g} of the baseline",
        f"loses more than {_KEPT:g} of accuracy",
    ),
    Claim("model_size_gb", _ratio("model_size_gb"), 1.0, "is smaller on disk", "is not smaller on disk"),
    Claim("latency_ms", _ratio("latency_ms"), 1.0, "answers faster", "does not answer faster"),
    Claim("memory_gb", _ratio("memory_gb"), 1.0, "needs less memory", "does not need less memory"),
    Claim("co2_grams", _ratio("co2_grams"), 1.0, "emits less CO2", "does not emit less CO2"),
)
"""In the order in which they are stated. Accuracy may fall by its bound, a ratio must be below 1."""


def findings(experiences: Iterable[Experience], size_class: Callable[[int], str]) -> tuple[Finding, ...]:
    """Every claim that at least one measurement can tell, in a fixed order.

    Args:
        experiences: everything remembered; the order does not matter.
        size_class: the class of a number of parameters.
    """
    groups: dict[tuple[tuple[str, ...], str, str], list[Experience]] = defaultdict(list)
    for item in experiences:
        methods = methods_of(item)
        if methods:
            groups[methods, "all", ""].append(item)
            groups[methods, "size", size_class(item.parameters)].append(item)
            groups[methods, "family", item.family].append(item)
    found = []
    for (methods, scope, where), items in sorted(groups.items(), key=lambda entry: entry[0]):
        told = (_finding(items, claim) for claim in CLAIMS)
        found += [item.model_copy(update={"methods": methods, "scope": scope, "where": where}) for item in told if item]
    return tuple(found)


def methods_of(experience: Experience) -> tuple[str, ...]:
    """The one or two methods that an experience tells of; none for longer strategies."""
    methods = tuple(stage.method for stage in experience.strategy.stages)
    return methods if len(methods) <= 2 else ()


def _finding(items: Sequence[Experience], claim: Claim) -> Finding | None:
    known = [(item, value) for item in items if (value := claim.value(item)) is not None]
    if not known:
        return None
    # A drop may reach its bound; a ratio of 1 or half of a failure is no success.
    allowed = claim.bound + 1e-12 if claim.quantity == "accuracy_drop" else math.nextafter(claim.bound, 0.0)
    judged = [(item, value <= allowed) for item, value in known]
    stated = 2 * sum(good for _, good in judged) >= len(judged)
    values = [value for _, value in known]
    held = [item for item, good in judged if good == stated]
    against = [item for item, good in judged if good != stated]
    studies, won = _by_study(held, against)
    return Finding(
        methods=(),
        scope="all",
        quantity=claim.quantity,
        claim=claim.holds if stated else claim.opposite,
        held=len(held),
        n=len(known),
        median=statistics.median(values),
        spread=statistics.pstdev(values),
        low=min(values),
        high=max(values),
        studies_held=won,
        studies=studies,
        confidence=(won + 1) / (studies + 2),
        provenance=dict(_episodes(held)),
        contradicted_by=dict(_episodes(against)),
    )


def _by_study(held: Sequence[Experience], against: Sequence[Experience]) -> tuple[int, int]:
    """Studies, and those of them in which it held in more measurements than not."""
    balance: dict[str, int] = defaultdict(int)
    for item in held:
        balance[item.study] += 1
    for item in against:
        balance[item.study] -= 1
    return len(balance), sum(value > 0 for value in balance.values())


def _episodes(items: Iterable[Experience]) -> Iterator[tuple[str, str]]:
    """By study, the episodes as ``1-3, 7``."""
    by_study: dict[str, set[int]] = defaultdict(set)
    for item in items:
        by_study[item.study].add(item.episode)
    for study in sorted(by_study):
        yield study, ", ".join(_runs(sorted(by_study[study])))


def _runs(numbers: Sequence[int]) -> Iterator[str]:
    begin = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            first, last = numbers[begin], numbers[index - 1]
            yield f"{first}" if first == last else f"{first}-{last}"
            begin = index
