r"""What earlier studies know that bears on a new one.

An experience's weight is its similarity :math:`s` to the present situation times the share of votes for it. Every
other study that tried the same strategy in a situation like the present one (similarity at least ``LEAST_ALIKE``) has
one vote, which counts as much as its similarity; the experience's own vote counts 1:

.. math:: weight = s \cdot (1 + A) / (1 + A + D)

with :math:`A` the votes of studies whose outcome agrees and :math:`D` of those that contradict it. One contradiction
takes up to half of the weight, several most of it, and agreement protects: a single wrong file among five good ones
gets about a sixth of its similarity and takes about a sixth of theirs.

Of more than ``_MOST_VOTERS`` studies with the same strategy the most similar vote, and weights are worked out for the
most similar ``_CANDIDATES`` times the limit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from agentic_compression.memory.experiments import measurement, read_experiences
from agentic_compression.memory.similarity import Context, context_of, device_kind, similarity
from agentic_compression.memory.workspace import Workspace
from agentic_compression.records import Experience, Recalled, Situation

__all__ = ["LEAST_ALIKE", "LEAST_SIMILAR", "contradicts", "recall", "recalled_from"]

LEAST_SIMILAR = 0.3
"""What is less similar than this to the situation is not recalled: the same device alone makes 0.1."""

LEAST_ALIKE = 0.6
"""Only what was measured in a situation this similar to the present one has a vote."""

_CANDIDATES = 4
_MOST_VOTERS = 32
_VOTES_A_STUDY = 3
_FAILED = frozenset({"failed", "oom", "timed_out", "infeasible"})
_ACCURACY = (0.05, 0.2)  # a difference this small never contradicts, one this large always
_SIZE_FACTOR = 1.25
_COST_FACTOR = 2.0


def recall(
    workspace: Workspace,
    situation: Situation,
    limit: int = 64,
    leave_out: Collection[tuple[str, int, str, str]] = (),
) -> tuple[Recalled, ...]:
    """``recalled_from`` over everything that is remembered."""
    return recalled_from(read_experiences(workspace).values(), situation, limit, leave_out)


def recalled_from(
    experiences: Iterable[Experience],
    situation: Situation,
    limit: int = 64,
    leave_out: Collection[tuple[str, int, str, str]] = (),
) -> tuple[Recalled, ...]:
    """The experiences that bear most on a situation: by falling weight, then similarity, then the newest first.

    Args:
        experiences: everything remembered, in any order.
        situation: of the study that is being planned.
        limit: at most so many, at least 1.
        leave_out: measurements (see ``measurement``) that are known already, such as the study's own.
    """
    ranked = _by_similarity(experiences, context_of(situation), leave_out)
    votes = _Votes(ranked)
    found = [
        Recalled(experience=item, similarity=alike, weight=alike * votes.share(item))
        for alike, item in ranked[: _CANDIDATES * limit]
    ]
    return tuple(sorted(found, key=lambda item: (-item.weight, -item.similarity))[:limit])


def contradicts(one: Experience, other: Experience) -> bool | None:
    """Whether two outcomes of the same strategy cannot both be expected; None when they cannot be compared.

    One that succeeded contradicts one that failed. Two that succeeded contradict each other when their losses of
    accuracy differ by more than 1.96 standard errors of the four proportions (within 0.05 and 0.2), their sizes in
    proportion to the baseline by more than a factor of 1.25, or, on the same kind of device, another cost by more
    than a factor of 2. A strategy that was rejected on cheap evidence was not measured, so it contradicts nothing.
    """
    if "rejected" in {one.status, other.status}:
        return None
    if (one.status in _FAILED) != (other.status in _FAILED):
        return True
    if one.status in _FAILED:
        return False
    found = [*_accuracy_apart(one, other), *_costs_apart(one, other)]
    return any(found) if found else None


class _Votes:
    """Who tried which strategy: by strategy and study its most similar measurements."""

    def __init__(self, ranked: Sequence[tuple[float, Experience]]) -> None:
        self._voters: dict[str, dict[str, list[tuple[float, Experience]]]] = defaultdict(dict)
        for alike, item in ranked:
            if alike < LEAST_ALIKE:
                break
            studies = self._voters[item.strategy.label]
            if item.study in studies or len(studies) < _MOST_VOTERS:
                studies.setdefault(item.study, []).append((alike, item))

    def share(self, experience: Experience) -> float:
        """``(1 + A) / (1 + A + D)``; a study that tried the strategy more than once votes by its mean."""
        agree = oppose = 0.0
        for study, measured in self._voters.get(experience.strategy.label, {}).items():
            if study == experience.study:
                continue
            against = [(alike, contradicts(experience, other)) for alike, other in measured[:_VOTES_A_STUDY]]
            told = [(alike, no) for alike, no in against if no is not None]
            agree += sum(alike for alike, no in told if not no) / max(1, len(told))
            oppose += sum(alike for alike, no in told if no) / max(1, len(told))
        return (1 + agree) / (1 + agree + oppose)


def _by_similarity(
    experiences: Iterable[Experience], here: Context, leave_out: Collection[tuple[str, int, str, str]]
) -> list[tuple[float, Experience]]:
    """What is similar enough, the most similar first, then the newest; the order of the input does not matter."""
    studies = {study for study, *_ in leave_out}
    alike: dict[Context, float] = {}
    ranked = []
    for item in experiences:
        if item.study in studies and measurement(item) in leave_out:
            continue
        context = context_of(item)
        if context not in alike:
            alike[context] = similarity(here, context)
        if alike[context] >= LEAST_SIMILAR:
            ranked.append((alike[context], item))
    ranked.sort(key=lambda pair: (pair[1].at, pair[1].study, pair[1].episode, pair[1].strategy.label), reverse=True)
    ranked.sort(key=lambda pair: pair[0], reverse=True)
    return ranked


def _accuracy_apart(one: Experience, other: Experience) -> Iterable[bool]:
    drops, variance = [], 0.0
    for item in (one, other):
        if item.accuracy is None or item.baseline_accuracy is None:
            return
        drops.append(item.baseline_accuracy - item.accuracy)
        if item.items:
            variance += sum(p * (1 - p) for p in (item.accuracy, item.baseline_accuracy)) / item.items
    bound = min(max(1.96 * math.sqrt(variance), _ACCURACY[0]), _ACCURACY[1])
    yield abs(drops[0] - drops[1]) > bound


def _costs_apart(one: Experience, other: Experience) -> Iterable[bool]:
    same_device = device_kind(one.device) == device_kind(other.device)
    for name in one.ratios.keys() & other.ratios.keys():
        if name != "model_size_gb" and not same_device:
            continue
        factor = _SIZE_FACTOR if name == "model_size_gb" else _COST_FACTOR
        yield abs(math.log(one.ratios[name] / other.ratios[name])) > math.log(factor)
