"""What was measured, in this study and in earlier ones, as divergences and as costs in proportion to a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agentic_compression.planning.greybox.costs import COSTS
from agentic_compression.planning.grid import canonical
from agentic_compression.records import EpisodeRecord, Objectives, SearchSpace, Situation, Strategy

__all__ = ["Evidence", "accuracy_of", "kl_of", "of_history", "of_memory", "sources_of"]

_DOUBT = 0.6
_LEAST_WEIGHT = 0.1


@dataclass(frozen=True)
class Evidence:
    """One measured strategy.

    Attributes:
        strategy: in canonical form.
        kl: nats a token from the baseline; None where it was not read.
        ratios: by cost, over the baseline's; those that are known.
        doubt: standard deviation, in ln units of a divergence, by which it may be off because it was measured on
            another model or machine; 0 for the study's own.
        source: the other model that it was measured on; empty for the study's own.
    """

    strategy: Strategy
    kl: float | None
    ratios: dict[str, float]
    doubt: float = 0.0
    source: str = ""


def of_history(space: SearchSpace, history: Sequence[EpisodeRecord], baseline: Objectives | None) -> list[Evidence]:
    """Of a study's own episodes."""
    found = []
    for record in history:
        if record.strategy.is_baseline:
            continue
        ratios = _ratios(_costs_of(record), baseline) if baseline is not None else {}
        kl = kl_of(record)
        if ratios or kl is not None:
            found.append(Evidence(canonical(space, record.strategy), kl, ratios))
    return found


def sources_of(situation: Situation) -> tuple[tuple[str, float], ...]:
    """The other models that memory recalls results of: their digests, and how alike their situations are at most."""
    own = situation.spec.digest if situation.spec else None
    found: dict[str, float] = {}
    for item in situation.recalled:
        digest = item.experience.digest
        if digest and digest != own:
            found[digest] = max(found.get(digest, 0.0), item.similarity)
    return tuple(found.items())


def of_memory(space: SearchSpace, situation: Situation) -> list[Evidence]:
    """Of earlier studies: the less alike, the more in doubt. Strategies that this space cannot express are left out."""
    known = {method.name for method in space.methods}
    others, found = {source for source, _ in sources_of(situation)}, []
    for item in situation.recalled:
        experience = item.experience
        if experience.strategy.is_baseline or not {stage.method for stage in experience.strategy.stages} <= known:
            continue
        kl = experience.kl if experience.kl is not None and math.isfinite(experience.kl) else None
        ratios = {name: value for name, value in experience.ratios.items() if name in COSTS and 0 < value < math.inf}
        doubt = _DOUBT / max(item.weight, _LEAST_WEIGHT)
        source = experience.digest if experience.digest in others else ""
        found.append(Evidence(canonical(space, experience.strategy), kl, ratios, doubt, source))
    return found


def kl_of(record: EpisodeRecord) -> float | None:
    """Nats a token from the baseline, as far as it was measured."""
    if record.evaluation is not None and record.evaluation.divergence is not None:
        return record.evaluation.divergence.kl.value
    return next((reading.value for reading in record.screening if reading.quantity == "kl"), None)


def accuracy_of(record: EpisodeRecord) -> tuple[float, float] | None:
    """Accuracy and its standard deviation; of a rejected episode on the items that it was asked before it was."""
    if record.objectives is not None:
        low, high = record.intervals.get("accuracy", (0.0, 0.0))
        return record.objectives.accuracy, (high - low) / 3.92
    readings = [reading for reading in record.screening if reading.quantity == "accuracy"]
    if record.status != "rejected" or not readings:
        return None
    last = max(readings, key=lambda reading: reading.n)
    return last.value, (last.high - last.low) / 3.92


def _costs_of(record: EpisodeRecord) -> dict[str, float]:
    """What was measured of the costs: all of them, or of a rejected episode what was read before it was.

    The readings come in order, so that a measurement takes the place of a glance.
    """
    if record.status == "succeeded" and record.objectives is not None:
        return {name: float(getattr(record.objectives, name)) for name in COSTS}
    if record.status != "rejected":
        return {}
    return {name: value for name, value in (reading.objective for reading in record.screening) if name in COSTS}


def _ratios(costs: Mapping[str, float], baseline: Objectives) -> dict[str, float]:
    wholes = {name: float(getattr(baseline, name)) for name in costs}
    return {name: max(1e-6, value / wholes[name]) for name, value in costs.items() if wholes[name] > 0}
