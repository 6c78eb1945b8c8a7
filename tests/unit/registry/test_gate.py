"""The gate's conditions, each with its numbers; policies and rankings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.errors import ConfigurationError
from agentic_compression.evaluation.comparison import compare_evaluations
from agentic_compression.records import (
    AliasRule,
    Constraint,
    GateVerdict,
    Objectives,
    PromotionPolicy,
    Solution,
    VersionEvidence,
)
from agentic_compression.registry import policy_file, read_policy
from agentic_compression.registry.aliases import ranked
from agentic_compression.registry.gate import judge
from tests.unit.registry.desks import measured

POLICY = PromotionPolicy()


def _evidence(version: str, accuracy: float, size_mb: float, items: int = 100, **changes: Any) -> VersionEvidence:
    evaluation = measured(accuracy, size_mb, items=items)
    values = {
        "model": "m", "version": version, "study": "s", "episode": int(version), "state": "frontier",
        "objectives": evaluation.objectives, "baseline": measured(0.95, 40).objectives, "evaluation": evaluation,
    }  # fmt: skip
    return VersionEvidence.model_validate({**values, **changes})


def _judge(
    ours: VersionEvidence, theirs: VersionEvidence, policy: PromotionPolicy = POLICY, **options: Any
) -> GateVerdict:
    assert ours.evaluation is not None
    assert theirs.evaluation is not None
    compared = compare_evaluations(theirs.evaluation, ours.evaluation)
    differences = options.pop("differences", ())
    return judge(policy, options.pop("alias", "champion"), ours, theirs, compared, differences, **options)


def _failed(verdict: GateVerdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_as_good_and_smaller_passes() -> None:
    verdict = _judge(_evidence("2", 0.94, 10), _evidence("1", 0.95, 40))
    assert verdict.passed
    assert verdict.failures == ""


@settings(deadline=None)
@given(lost=st.integers(0, 40))
def test_the_accuracy_guard_agrees_with_the_exact_binomial_test(lost: int) -> None:
    from scipy.stats import binomtest

    verdict = _judge(_evidence("2", 0.9 - lost / 100, 10), _evidence("1", 0.9, 40))
    p_value = binomtest(0, lost, 0.5).pvalue if lost else 1.0
    assert verdict.comparison is not None
    assert verdict.comparison.p_value == pytest.approx(p_value)
    if "accuracy not worse" in _failed(verdict):
        assert p_value <= 0.05
    elif p_value <= 0.05:  # then the interval, which adds an answer gained and one lost, holds 0
        assert verdict.comparison.accuracy.high >= 0


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"state": "superseded"}, "non-dominated", "left the frontier"),
        ({"evaluation": None, "missing": "it was never asked the report items"}, "full evaluation", "never asked"),
        ({"constraints": (Constraint.parse("accuracy_drop<=0.005"),)}, "constraint accuracy_drop<=0.005", "0.01: acc"),
        ({"constraints": (Constraint.parse("latency_ms<=5"),)}, "constraint latency_ms<=5", "10"),
        ({"constraints": (Constraint.parse("size_ratio<=0.2"),)}, "constraint size_ratio<=0.2", "0.25: 0.01 GB"),
    ],
)
def test_what_a_version_must_be_whoever_holds_the_alias(changes: dict[str, Any], name: str, told: str) -> None:
    verdict = judge(POLICY, "champion", _evidence("2", 0.94, 10, **changes))
    assert _failed(verdict) == [name]
    assert told in verdict.failures


def test_the_policys_own_constraints_count_as_well() -> None:
    policy = PromotionPolicy.model_validate({"constraints": ["model_size_gb<=0.005"]})
    assert _failed(judge(policy, "champion", _evidence("2", 0.94, 10))) == ["constraint model_size_gb<=0.005"]


def test_the_constraints_of_the_holders_study_bind_another_studys_challenger() -> None:
    bound = Constraint.parse("latency_ms<=0.001")
    holder = _evidence("1", 0.95, 40, constraints=(bound,))
    verdict = _judge(_evidence("2", 0.94, 10, study="other"), holder)
    assert f"constraint {bound} of s" in _failed(verdict)
    own = _judge(_evidence("2", 0.94, 10, study="other", constraints=(bound,)), holder)
    assert [check.name for check in own.checks if "constraint" in check.name] == [f"constraint {bound}"]


def test_a_dominated_challenger_is_refused() -> None:
    verdict = _judge(_evidence("2", 0.94, 11), _evidence("1", 0.94, 10))
    assert _failed(verdict) == ["not dominated by the incumbent"]
    assert "model_size_gb 0.011 and 0.01" in verdict.failures


def test_another_environment_is_refused_and_says_how_to_go_on() -> None:
    verdict = _judge(_evidence("2", 0.94, 10), _evidence("1", 0.95, 40), differences=("threads is 1, version 1's 2",))
    assert _failed(verdict) == ["same environment"]
    assert "threads is 1" in verdict.failures
    assert "--pipeline" in verdict.failures


def test_too_few_items_decide_nothing() -> None:
    assert _failed(_judge(_evidence("2", 0.95, 10, items=20), _evidence("1", 0.95, 40, items=20))) == [
        "items in common"
    ]


def test_few_items_do_not_keep_what_its_own_study_superseded() -> None:
    ours, theirs = _evidence("2", 0.95, 10, items=20), _evidence("1", 0.95, 40, items=20, state="superseded")
    assert _judge(ours, theirs, stands=False).passed


@pytest.mark.parametrize(("accuracy", "refused"), [(0.90, []), (0.60, ["accuracy not worse"])])
def test_what_replaces_a_superseded_holder_is_not_significantly_worse(accuracy: float, refused: list[str]) -> None:
    verdict = _judge(_evidence("2", accuracy, 40), _evidence("1", 0.90, 10, state="superseded"), stands=False)
    assert _failed(verdict) == refused


def test_a_superseded_holder_of_another_study_is_replaced_by_what_passes_the_whole_gate() -> None:
    theirs = _evidence("1", 0.94, 10, state="superseded", study="another")
    assert _failed(_judge(_evidence("2", 0.94, 11), theirs, stands=False)) == ["not dominated by the incumbent"]
    unknown = ("where version 1 was measured is not known",)
    assert _failed(_judge(_evidence("2", 0.94, 9), theirs, stands=False, differences=unknown)) == ["same environment"]
    assert _judge(_evidence("2", 0.94, 9), theirs, stands=False).passed


def test_an_alias_of_one_objective_asks_for_more_of_it() -> None:
    verdict = _judge(_evidence("2", 0.95, 40), _evidence("1", 0.94, 10), alias="smallest")
    assert "better model_size_gb: 0.04, version 1 has 0.01" in verdict.failures


def test_an_incumbent_that_cannot_be_compared_stays() -> None:
    verdict = judge(POLICY, "champion", _evidence("2", 0.94, 10), _evidence("1", 0.95, 40), "other items")
    assert _failed(verdict) == ["accuracy not worse"]
    assert "other items" in verdict.failures


def _solution(episode: int, values: list[float]) -> Solution:
    names = list(Objectives.model_fields)
    objectives = Objectives.model_validate(dict(zip(names, values, strict=True)))
    return Solution(episode=episode, strategy="", objectives=objectives, intervals={}, checkpoint=None)


@settings(deadline=None)
@given(
    points=st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=1, max_size=6),
    weights=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
)
def test_weighted_ranking_agrees_with_numpy(points: list[list[float]], weights: list[float]) -> None:
    names = list(Objectives.model_fields)
    rule = AliasRule(by="weights", weights=dict(zip(names, weights, strict=True)))
    order = ranked([_solution(episode, values) for episode, values in enumerate(points)], rule)
    costs = np.array(points) * np.array([-1, 1, 1, 1, 1])
    span = np.ptp(costs, axis=0)
    scaled = np.where(span > 0, (costs - costs.min(axis=0)) / np.where(span > 0, span, 1), 0)
    losses = scaled @ np.array(weights) / sum(weights)
    assert losses[order[0].episode] == pytest.approx(losses.min(), abs=1e-9)


def test_the_champions_runner_up_is_the_next_best_compromise() -> None:
    points = {0: [1.0, 10, 1, 1, 1], 1: [0.9, 1, 0.1, 0.1, 0.1], 2: [0.0, 0.9, 0.09, 0.09, 0.09]}
    solutions = [_solution(episode, values) for episode, values in points.items()]
    order = ranked([item.model_copy(update={"is_knee": item.episode == 0}) for item in solutions], AliasRule(by="knee"))
    assert [item.episode for item in order] == [0, 1, 2]


def test_the_shipped_policy_is_the_default(tmp_path: Path) -> None:
    assert read_policy(policy_file(tmp_path)) == PromotionPolicy()


def test_the_state_roots_own_policy_is_read_first(tmp_path: Path) -> None:
    (tmp_path / "promotion.yaml").write_text(
        "aliases: {champion: {by: weights, weights: {accuracy: 2}}}\nconstraints: ['accuracy_drop<=0.02']\n"
    )
    policy = read_policy(policy_file(tmp_path))
    assert policy.aliases["champion"].weights == {"accuracy": 2}
    assert str(policy.constraints[0]) == "accuracy_drop<=0.02"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("aliases: {winner: {by: knee}}", "champion"),
        ("aliases: {champion: {by: weights}}", "weights go with"),
        ("aliases: {champion: {by: weights, weights: {speed: 1}}}", "speed"),
        ("significance: 0.2", "significance"),
        ("constraints: ['speed<=1']", "speed<=1"),
        ("approve: true", "approve"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_policy_names_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "promotion.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=named):
        read_policy(path)
