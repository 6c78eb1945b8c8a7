"""The promotion gate: may this version take this alias? Every condition is answered with its numbers.

Pure: evidence in, verdict out. Whoever asks has compared both versions on the items in common (``Comparison``) and
their environments before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from agentic_compression.records import (
    AliasRule,
    Comparison,
    Constraint,
    GateCheck,
    GateVerdict,
    Objectives,
    PromotionPolicy,
    VersionEvidence,
)
from agentic_compression.registry.aliases import cost

__all__ = ["judge", "merits"]

_ENOUGH = "items in common"
_STATES = {
    "superseded": "a later episode dominates it, it left the frontier",
    "withheld": "it did not pass the checks of its study's results",
    "removed": "its study was removed",
}


def judge(
    policy: PromotionPolicy,
    alias: str,
    challenger: VersionEvidence,
    incumbent: VersionEvidence | None = None,
    comparison: Comparison | str | None = None,
    differences: Sequence[str] = (),
    *,
    stands: bool = True,
) -> GateVerdict:
    """Whether the challenger may take the alias.

    Args:
        policy: the rules.
        alias: one of the policy's.
        challenger: the version that would take it.
        incumbent: the version that holds it; None: nobody to beat.
        comparison: incumbent to challenger on the items in common, or why there is none.
        differences: between the environments that the two were measured in, in words.
        stands: the incumbent may keep the alias. One that has left its study's frontier has to be replaced, though by
            nothing of that study that is known to be significantly less accurate, and from another study only by what
            passes the whole gate.
    """
    checks, rule = list(merits(policy, challenger)), policy.aliases[alias]
    if incumbent is not None and (stands or incumbent.study != challenger.study):
        checks += _inherited(policy, challenger, incumbent)
        checks += _against(rule, policy, challenger, incumbent, comparison, differences)
    elif incumbent is not None and rule.guard_accuracy and isinstance(comparison, Comparison):
        found = _accuracy(policy, incumbent, comparison)  # few items in common must not keep what was dominated
        checks += [check for check in found if check.name != _ENOUGH]
    return GateVerdict(
        model=challenger.model,
        alias=alias,
        version=challenger.version,
        incumbent=incumbent.version if incumbent else None,
        checks=tuple(checks),
        comparison=comparison if isinstance(comparison, Comparison) else None,
    )


def merits(policy: PromotionPolicy, challenger: VersionEvidence) -> Iterator[GateCheck]:
    """What a version must be whoever holds the alias: measured in full, not dominated, within the constraints."""
    yield _full_fidelity(challenger)
    reason = "" if challenger.state == "frontier" else _STATES.get(challenger.state, challenger.state)
    yield GateCheck(name="non-dominated", passed=not reason, detail=reason or f"on the frontier of {challenger.study}")
    for constraint in dict.fromkeys((*challenger.constraints, *policy.constraints)):
        yield _constraint(constraint, challenger)


def _inherited(policy: PromotionPolicy, challenger: VersionEvidence, incumbent: VersionEvidence) -> Iterator[GateCheck]:
    """A study without constraints must not take an alias to where another study's do not let it go."""
    for constraint in dict.fromkeys(incumbent.constraints):
        if constraint not in (*challenger.constraints, *policy.constraints):
            check = _constraint(constraint, challenger)
            yield check.model_copy(update={"name": f"{check.name} of {incumbent.study}"})


def _full_fidelity(challenger: VersionEvidence) -> GateCheck:
    evaluation, objectives = challenger.evaluation, challenger.objectives
    detail = challenger.missing
    if not detail and (evaluation is None or objectives is None):
        detail = "its evaluation is not in the history"
    if not detail and objectives is not None:
        broken = [f"{name} is {value}" for name, value in objectives.model_dump().items() if not math.isfinite(value)]
        detail = ", ".join(broken)
    if detail or evaluation is None:
        return GateCheck(name="full evaluation", passed=False, detail=detail)
    items = sum(score.score.n for score in evaluation.benchmarks)
    told = f"{items} items ({evaluation.split}), {evaluation.latency.runs} timed requests"
    return GateCheck(name="full evaluation", passed=True, detail=told)


def _constraint(constraint: Constraint, challenger: VersionEvidence) -> GateCheck:
    name = f"constraint {constraint}"
    objectives, baseline = challenger.objectives, challenger.baseline
    if objectives is None or baseline is None:
        return GateCheck(name=name, passed=False, detail="the objectives or the baseline are not known")
    if constraint.quantity == "accuracy_drop":
        value = baseline.accuracy - objectives.accuracy
        told = f"{value:.4g}: accuracy {objectives.accuracy:.4g}, the baseline's {baseline.accuracy:.4g}"
    elif constraint.quantity == "size_ratio":
        value = objectives.model_size_gb / baseline.model_size_gb
        told = f"{value:.4g}: {objectives.model_size_gb:.4g} GB, the baseline's {baseline.model_size_gb:.4g} GB"
    else:
        told = f"{getattr(objectives, constraint.quantity):.4g}"
    return GateCheck(name=name, passed=constraint.holds(objectives, baseline), detail=told)


def _against(
    rule: AliasRule,
    policy: PromotionPolicy,
    challenger: VersionEvidence,
    incumbent: VersionEvidence,
    comparison: Comparison | str | None,
    differences: Sequence[str],
) -> Iterator[GateCheck]:
    name = f"version {incumbent.version}"
    yield GateCheck(
        name="same environment",
        passed=not differences,
        detail=f"unlike {name}: {'; '.join(differences)}; measure both: --pipeline" if differences else f"as {name}",
    )
    if incumbent.objectives is not None and challenger.objectives is not None and not differences:
        yield _not_dominated(challenger.objectives, incumbent.objectives, name)
        if rule.by in Objectives.model_fields:
            yield _suits(rule.by, challenger.objectives, incumbent.objectives, name)
    if rule.guard_accuracy:
        yield from _accuracy(policy, incumbent, comparison)


def _not_dominated(ours: Objectives, theirs: Objectives, name: str) -> GateCheck:
    pairs = [(cost(ours, key), cost(theirs, key)) for key in Objectives.model_fields]
    dominated = all(their <= our for our, their in pairs) and any(their < our for our, their in pairs)
    numbers = ", ".join(
        f"{key} {getattr(ours, key):.4g} and {getattr(theirs, key):.4g}" for key in Objectives.model_fields
    )
    told = f"{name} is nowhere worse: {numbers}" if dominated else f"{name} is worse in an objective or more"
    return GateCheck(name="not dominated by the incumbent", passed=not dominated, detail=told)


def _suits(objective: str, ours: Objectives, theirs: Objectives, name: str) -> GateCheck:
    passed = cost(ours, objective) <= cost(theirs, objective)
    told = f"{getattr(ours, objective):.4g}, {name} has {getattr(theirs, objective):.4g}"
    return GateCheck(name=f"better {objective}", passed=passed, detail=told)


def _accuracy(
    policy: PromotionPolicy, incumbent: VersionEvidence, comparison: Comparison | str | None
) -> Iterator[GateCheck]:
    if not isinstance(comparison, Comparison):
        reason = comparison or incumbent.missing or "the two were not compared"
        yield GateCheck(
            name="accuracy not worse",
            passed=False,
            detail=f"not known against version {incumbent.version}: {reason}; measure both: --pipeline",
        )
        return
    difference = comparison.accuracy
    enough = difference.n >= policy.least_items
    yield GateCheck(name=_ENOUGH, passed=enough, detail=f"{difference.n}, at least {policy.least_items} are needed")
    worse = comparison.verdict == "worse" and comparison.p_value <= policy.significance
    flips = comparison.flips
    changed = f", {flips.right_to_wrong} answers lost and {flips.wrong_to_right} gained" if flips else ""
    told = (
        f"{difference.value:+.4f} against version {incumbent.version}, 95 % CI [{difference.low:+.4f}, "
        f"{difference.high:+.4f}], p={comparison.p_value:.2g}, n={difference.n}{changed}"
    )
    yield GateCheck(name="accuracy not worse", passed=not worse, detail=told)
