"""What the language model is told of a study, as plain data. Only the search side: no report item's result is in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agentic_compression.planning.grid import canonical
from agentic_compression.planning.llm.decision import Rules
from agentic_compression.planning.llm.progress import (
    baseline_of,
    hypervolume_alone,
    hypervolume_gains,
    ratios,
    search_frontier,
)
from agentic_compression.planning.llm.review import LANGUAGE_MODEL, expectation_errors
from agentic_compression.records import (
    Candidate,
    EpisodeRecord,
    ExpectationError,
    Expected,
    MethodDescription,
    Objectives,
    Recalled,
    Recommended,
    SearchSpace,
    Situation,
)

__all__ = ["describe"]

_LAST = 5
_RECALLED = 8
_RECOMMENDED = 5
_TRIED = 200
_DIGITS = 4
_TERMS = {
    "accuracy": "accuracy",
    "latency_ms": "latency_ratio",
    "memory_gb": "memory_ratio",
    "model_size_gb": "size_ratio",
    "co2_grams": "co2_ratio",
}
"""Objectives in the terms of the answer."""


def describe(rules: Rules, history: Sequence[EpisodeRecord], situation: Situation | None) -> dict[str, Any]:
    """The data of one question; every text from outside is a value in it, none is a key.

    Args:
        rules: methods, candidates and what was tried.
        history: everything recorded of the study.
        situation: model, wish, what is left to spend, what memory recalls and recommends.
    """
    known, space = situation or Situation(), rules.space
    ordered = sorted((record for record in history if record.episode > 0), key=lambda record: record.episode)
    baseline, gains = baseline_of(history), hypervolume_gains(history)
    volume, alone = hypervolume_alone(history)
    return {
        "objective": known.objective,
        "constraints": [str(constraint) for constraint in known.constraints],
        "study": _study(known, space),
        "left": {
            "episodes": known.episodes_left,
            "seconds": _short(known.seconds_left),
            "co2_grams": _short(known.co2_left_grams),
            "co2_grams_spent": _short(known.co2_spent_grams),
        },
        "baseline": {name: _short(value) for name, value in baseline.model_dump().items()} if baseline else None,
        "noise": _noise(history, baseline),
        "frontier": [
            _result(record, space, baseline) | {"hypervolume_of_it_alone": _short(alone.get(record.episode, 0.0))}
            for record in search_frontier(history)
        ],
        "hypervolume_now": _short(volume),
        "hypervolume": [
            {"episode": record.episode, "added": _short(gains.get(record.episode, 0.0))} for record in ordered
        ],
        "last_episodes": [_episode(record, space, baseline) for record in ordered[-_LAST:]],
        "your_errors": [
            _error(error, baseline) for error in expectation_errors(history) if error.maker == LANGUAGE_MODEL
        ],
        "memory": [_recalled(item, space) for item in known.recalled[:_RECALLED]],
        "skill_recommendations": _recommendations(known.recommended, rules),
        "candidates": [_candidate(at, item, space, baseline) for at, item in enumerate(rules.candidates, start=1)],
        "tried": [_tried(record, space, baseline) for record in ordered[-_TRIED:]],
        "own_strategy_allowed": rules.may_override,
        "running": [space.brief(strategy) for strategy in rules.running],
        "methods": [_method(method) for method in space.offered],
        "most_stages": space.max_stages,
    }


def _noise(history: Sequence[EpisodeRecord], baseline: Objectives | None) -> dict[str, Any]:
    """Half the width of the baseline's 95 % intervals, in the terms of the answer."""
    found = next((record.intervals for record in history if record.strategy.is_baseline), {})
    told = {}
    for name, (low, high) in found.items():
        unit = _unit(name, baseline)
        if unit is not None:
            told[_TERMS[name]] = _short((high - low) / 2 / unit)
    return told


def _study(known: Situation, space: SearchSpace) -> dict[str, Any]:
    spec = known.spec
    offered = {method.name for method in space.offered}
    told: dict[str, Any] = {"dataset": known.dataset[:300], "tasks": list(known.tasks[:20]), "device": known.device}
    if spec is None:
        return told
    return told | {
        "model": spec.model[:300],
        "family": spec.family[:60],
        "parameters": spec.parameters,
        "dtype": spec.dtype,
        "size_class": spec.size_class,
        "layers": spec.layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "vocabulary": spec.vocabulary,
        "tied_embeddings": spec.tied_embeddings,
        "experts": spec.experts,
        "preferred_methods": [name for name in spec.preferred_methods if name in offered],
    }


def _episode(record: EpisodeRecord, space: SearchSpace, baseline: Objectives | None) -> dict[str, Any]:
    told = _result(record, space, baseline) | {"source": record.source, "status": record.status}
    if record.error:
        told["reason"] = record.error[:300]
    if record.rationale:
        told["rationale"] = record.rationale[:300]
    if record.expected:
        told["expected"] = _expected(record.expected, baseline)
    return told


def _result(record: EpisodeRecord, space: SearchSpace, baseline: Objectives | None) -> dict[str, Any]:
    told: dict[str, Any] = {"episode": record.episode, "strategy": space.brief(record.strategy)}
    if record.objectives is None:
        return told
    told["accuracy"] = _short(record.objectives.accuracy)
    if "accuracy" in record.intervals:
        told["accuracy_interval"] = [_short(end) for end in record.intervals["accuracy"]]
    return told | (_by_ratio(ratios(record.objectives, baseline)) if baseline else {})


def _tried(record: EpisodeRecord, space: SearchSpace, baseline: Objectives | None) -> dict[str, Any]:
    """One line of the list of everything."""
    told = {key: value for key, value in _result(record, space, baseline).items() if key != "accuracy_interval"}
    return told if record.status == "succeeded" else told | {"status": record.status}


def _candidate(number: int, item: Candidate, space: SearchSpace, baseline: Objectives | None) -> dict[str, Any]:
    told: dict[str, Any] = {"number": number, "strategy": space.brief(item.strategy)}
    if item.expected:
        told |= {"expected": _expected(item.expected, baseline), "expected_hypervolume_gain": _short(item.gain)}
    if item.seconds is not None:
        told["expected_seconds"] = _short(item.seconds)
    return told


def _expected(expected: Expected, baseline: Objectives | None) -> dict[str, list[Any]]:
    """Value and ends of the interval, in the terms of the answer: accuracy, and costs over the baseline's."""
    told = {}
    for name, triple in expected.items():
        unit = _unit(name, baseline)
        if unit is not None:
            told[_TERMS[name]] = [_short(value / unit) for value in triple]
    return told


def _error(error: ExpectationError, baseline: Objectives | None) -> dict[str, Any]:
    unit = _unit(error.objective, baseline) or 1.0
    return {
        "of": _TERMS[error.objective],
        "episodes": error.episodes,
        "mean_error": _short(error.mean_error / unit),
        "mean_absolute_error": _short(error.mean_absolute_error / unit),
        "measured_inside_your_interval": _short(error.within),
    }


def _unit(objective: str, baseline: Objectives | None) -> float | None:
    """What one unit of an objective's term in the answer is worth; None where it cannot be told."""
    if objective == "accuracy":
        return 1.0
    return (float(getattr(baseline, objective)) or None) if baseline is not None and objective in _TERMS else None


def _by_ratio(values: Mapping[str, float]) -> dict[str, float | None]:
    return {_TERMS[name]: _short(value) for name, value in values.items() if name in _TERMS}


def _recalled(item: Recalled, space: SearchSpace) -> dict[str, Any]:
    held = item.experience
    told: dict[str, Any] = {
        "similarity": _short(item.similarity),
        "weight": _short(item.weight),
        "model": held.model[:200],
        "dataset": held.dataset[:200],
        "strategy": space.brief(held.strategy),
        "status": held.status,
        **_by_ratio(held.ratios),
    }
    if held.accuracy is not None and held.baseline_accuracy is not None:
        told["accuracy_change"] = _short(held.accuracy - held.baseline_accuracy)
    if held.error:
        told["reason"] = held.error[:200]
    return told


def _recommendations(recommended: Sequence[Recommended], rules: Rules) -> list[dict[str, Any]]:
    """Of those that may be tried here: legal in this space and not tried or running already."""
    space = rules.space
    untried = [
        item
        for item in recommended
        if space.problem_with(item.strategy) is None and canonical(space, item.strategy).key not in rules.taken
    ]
    return [
        {
            "strategy": space.brief(item.strategy),
            "score": _short(item.score),
            "results": item.n,
            "reasons": "; ".join(item.reasons)[:300],
        }
        for item in untried[:_RECOMMENDED]
    ]


def _method(method: MethodDescription) -> dict[str, Any]:
    told: dict[str, Any] = {"name": method.name, "category": method.category, "summary": method.summary[:160]}
    told["parameters"] = {
        parameter.name: f"{parameter.allowed}; default {parameter.default}"
        + (f"; only if {parameter.active_when[0]}={parameter.active_when[1]}" if parameter.active_when else "")
        for parameter in method.parameters
    }
    if method.may_follow:
        told["may_follow"] = list(method.may_follow)
    if method.must_follow:
        told["must_follow"] = list(method.must_follow)
    if method.may_not_follow:
        told["may_not_follow"] = list(method.may_not_follow)
    if method.trains:
        told["trains"] = True
    if method.stored_as:
        told["stored_as"] = method.stored_as
    return told


def _short(value: float | None) -> float | None:
    """A few digits; None also for what is not a finite number, which JSON cannot say."""
    return float(f"{value:.{_DIGITS}g}") if value is not None and math.isfinite(value) else None
