"""Strategies: their text form, their key, and the legality rules of the search space."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.records import (
    BASELINE,
    Constraint,
    MethodDescription,
    Objectives,
    Parameter,
    SearchSpace,
    Stage,
    Strategy,
    StudyConfig,
)

names = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
values = st.one_of(
    st.booleans(),
    st.integers(-1000, 1000),
    st.sampled_from([0.1, 0.25, 0.5, 1.5e-05]),
    st.sampled_from(["layer", "per-row"]),
)
stages = st.builds(Stage, method=names, parameters=st.dictionaries(names, values, max_size=4))

SPACE = SearchSpace(
    methods=(
        MethodDescription(
            name="rtn",
            category="quantization",
            summary="",
            paper="",
            may_follow=("pruning",),
            parameters=(
                Parameter(name="bits", kind="choice", choices=(2, 3, 4, 8), default=4),
                Parameter(name="damp", kind="float", low=0.0, high=0.5, step=0.1, default=0.1),
            ),
        ),
        MethodDescription(name="prune", category="pruning", summary="", paper=""),
        MethodDescription(
            name="fp8", category="quantization", summary="", paper="", available=False, unavailable_reason="no GPU"
        ),
    )
)


@given(st.lists(stages, max_size=4))
def test_label_reads_back_as_the_same_strategy(given_stages: list[Stage]) -> None:
    strategy = Strategy(stages=tuple(given_stages))
    assert Strategy.parse(strategy.label) == strategy


def test_key_ignores_name_and_parameter_order_but_not_stage_order() -> None:
    first = Strategy.parse("a:x=1,y=2 | b")
    assert first.key == Strategy.parse("a:y=2,x=1 | b").model_copy(update={"name": "n"}).key
    assert first.key != Strategy.parse("b | a:x=1,y=2").key
    assert Strategy.parse("") is BASELINE


@pytest.mark.parametrize("text", ["a:x", "a:=1", "a:x=", "A:x=1", "a:x=1 | ", "../x", "a" * 60])
def test_parse_refuses_what_is_no_strategy(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Strategy.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rtn:bits=5", "bits must be one of 2, 3, 4, 8, got 5"),
        ("rtn:bits=true", "got True"),
        ("rtn:damp=0.9", "0..0.5 step 0.1, got 0.9"),
        ("rtn:speed=1", "no parameter 'speed'"),
        ("nope", "unknown method 'nope'"),
        ("fp8", "not available: no GPU"),
        ("rtn | prune", "cannot follow rtn"),
        ("prune | rtn | prune", "at most 2 stages"),
    ],
)
def test_problem_with_names_what_got_and_allowed(text: str, words: str) -> None:
    problem = SPACE.problem_with(Strategy.parse(text))
    assert problem is not None
    assert words in problem


def test_legal_strategies_have_no_problem_and_complete_to_one_key() -> None:
    assert SPACE.problem_with(Strategy.parse("prune | rtn:bits=3")) is None
    assert SPACE.complete(Strategy.parse("rtn")).key == SPACE.complete(Strategy.parse("rtn:bits=4,damp=0.1")).key


def test_values_are_the_grid() -> None:
    assert Parameter(name="s", kind="float", low=0.1, high=0.5, step=0.2, default=0.1).values() == (0.1, 0.3, 0.5)
    assert Parameter(name="n", kind="int", low=1, high=3, default=1).values() == (1, 2, 3)
    assert Parameter(name="s", kind="float", low=0.1, high=0.5, default=0.1).values() is None


def _objectives(accuracy: float, size: float) -> Objectives:
    return Objectives(accuracy=accuracy, latency_ms=10, memory_gb=1, model_size_gb=size, co2_grams=1)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("accuracy_drop<=0.02", True),
        ("accuracy_drop<=0.005", False),
        ("size_ratio<=0.25", True),
        ("size_ratio<=0.2", False),
        ("latency_ms<=10", True),
        ("accuracy>=0.95", False),
    ],
)
def test_constraints_compare_with_the_baseline(text: str, holds: bool) -> None:
    assert Constraint.parse(text).holds(_objectives(0.89, 0.25), _objectives(0.9, 1.0)) is holds
    assert str(Constraint.parse(text)) == text


@pytest.mark.parametrize("text", ["speed<=1", "accuracy<0.9", "accuracy<=x", "", "accuracy<=1; rm -rf"])
def test_constraints_refuse_what_they_cannot_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"a constraint is|could not convert"):
        Constraint.parse(text)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", ".hidden", "x" * 101])
def test_study_names_cannot_leave_their_folder(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        StudyConfig(model="demo", dataset="demo", name=name)


def test_brief_keeps_the_first_parameter_and_what_is_not_default() -> None:
    full = SPACE.complete(Strategy.parse("prune | rtn:damp=0.3"))
    assert SPACE.brief(full) == "prune | rtn:bits=4,damp=0.3"
    assert SPACE.brief(SPACE.complete(Strategy.parse("rtn"))) == "rtn:bits=4"
