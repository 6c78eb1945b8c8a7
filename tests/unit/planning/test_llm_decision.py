"""The schema of an answer and the check that it has to pass are one, and nothing outside the space gets through."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.methods import search_space
from agentic_compression.planning import StrategyGrid, canonical
from agentic_compression.planning.llm.decision import Rules, actions, decision_model, json_schema, read_decision
from agentic_compression.planning.llm.reply import InvalidAnswerError
from agentic_compression.records import Objectives, Strategy
from agentic_compression.testing.language_model import decision
from tests.unit.planning.llm_studies import rules
from tests.unit.planning.spaces import SPACE

RULES = rules()
MODEL = decision_model(RULES)
SCHEMA = json_schema(MODEL)
GRID = StrategyGrid(SPACE)
REAL = Rules(search_space(3), RULES.candidates, may_override=True, may_end=True, taken={})


REAL_MODEL, REAL_GRID = decision_model(REAL), StrategyGrid(REAL.space)


def _read(text: str, allowed: Rules = RULES) -> Any:
    made = {id(RULES): MODEL, id(REAL): REAL_MODEL}.get(id(allowed)) or decision_model(allowed)
    return read_decision(text, made, allowed)


def _own(strategy: Strategy, action: str = "pipeline") -> dict[str, Any]:
    stages = [{"method": stage.method, "parameters": stage.parameters} for stage in strategy.stages]
    return json.loads(decision(action, stages=stages))


def _action_of(strategy: Strategy, allowed: Rules = RULES) -> str:
    if len(strategy.stages) > 1:
        return "pipeline"
    method = allowed.space.method(strategy.stages[0].method)
    assert method is not None
    return "asvd" if method.category == "low_rank" else str(method.category)


def _objects(schema: Any) -> list[dict[str, Any]]:
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else []
    found = [item for value in inner for item in _objects(value)]
    return [*found, schema] if isinstance(schema, dict) and schema.get("type") == "object" else found


@pytest.mark.parametrize("allowed", [RULES, REAL], ids=["small", "all methods"])
def test_schema_keeps_the_rules_of_structured_outputs(allowed: Rules) -> None:
    schema = json_schema(decision_model(allowed))
    jsonschema.Draft202012Validator.check_schema(schema)
    for item in _objects(schema):
        assert item["additionalProperties"] is False
        assert sorted(item["required"]) == sorted(item["properties"])
    text = json.dumps(schema)
    for refused in ('"oneOf"', '"allOf"', '"discriminator"', '"default"', '"prefixItems"', '"not"'):
        assert refused not in text
    assert text.count('"enum"') < 200  # far below what providers allow
    assert len(text) < 40_000


def test_schema_is_what_the_openai_package_makes_of_the_model_where_it_changes_nothing() -> None:
    """An independent reference for the parts without a union of stages."""
    from openai.lib._pydantic import to_strict_json_schema

    plain = decision_model(rules(may_override=False))
    theirs, ours = to_strict_json_schema(plain), json_schema(plain)

    def without_titles(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without_titles(v) for k, v in value.items() if k != "title" or isinstance(v, dict)}
        return [without_titles(item) for item in value] if isinstance(value, list) else value

    assert without_titles(theirs) == ours


@settings(deadline=None)
@given(index=st.integers(0, GRID.count - 1))
def test_every_legal_strategy_can_be_said_and_is_read_back(index: int) -> None:
    strategy = GRID.at(index)
    value = _own(strategy, _action_of(strategy))
    jsonschema.validate({"candidate": None, **value}, SCHEMA)
    assert _read(json.dumps(value)).strategy == canonical(SPACE, strategy)


@settings(deadline=None)
@given(index=st.integers(0, REAL_GRID.count - 1))
def test_every_strategy_of_the_methods_on_offer_can_be_said(index: int) -> None:
    strategy = REAL_GRID.at(index)
    assert _read(json.dumps(_own(strategy, _action_of(strategy, REAL))), REAL).strategy == canonical(
        REAL.space, strategy
    )


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["stages", "action", "candidate", "expected", "extra", "rationale"]),
)
def test_an_answer_is_either_legal_or_refused_in_words(junk: Any, where: str) -> None:
    value = {**_own(Strategy.parse("rtn:bits=4")), "action": "quantization", where: junk}
    refusal, read = "", None
    try:
        read = _read(json.dumps(value))
    except InvalidAnswerError as problem:
        refusal = str(problem)
    assert 0 < len(refusal) <= 1300 or read is not None
    if read is not None:
        assert read.action in actions(RULES)
        legal = read.strategy is not None and SPACE.problem_with(read.strategy) is None
        assert legal or read.action == "end" or 0 <= read.candidate < len(RULES.candidates)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": [{"method": "rm -rf", "parameters": None}]}, "rm -rf"),
        ({"stages": [{"method": "awq", "parameters": {"bits": 4}}]}, "awq"),  # known, not on offer
        ({"stages": [{"method": "rtn", "parameters": {"bits": 5}}]}, "2, 3, 4 or 8"),
        ({"stages": [{"method": "rtn", "parameters": {"bits": True}}]}, "2, 3, 4 or 8"),
        ({"stages": [{"method": "rtn", "parameters": {"bitz": 4}}]}, "bitz"),
        ({"stages": [{"method": "magnitude", "parameters": {"sparsity": 0.95}}]}, "0.9"),
        ({"stages": [{"method": "magnitude", "parameters": {"sparsity": -1e308}}]}, "0.1"),
        ({"stages": [{"method": "rtn"}, {"method": "magnitude"}], "action": "pipeline"}, "cannot follow"),
        ({"stages": [{"method": "rtn"}] * 3, "action": "pipeline"}, "at most 2 stages"),
        ({"stages": [], "action": "quantization"}, "at least one stage"),
        ({"stages": [{"method": "rtn"}], "action": "pruning"}, "needs a stage of: magnitude"),
        ({"stages": [{"method": "rtn"}], "action": "pipeline"}, "two stages"),
        ({"stages": [{"method": "rtn"}], "action": "search"}, "takes no stages"),
        ({"action": "shell", "stages": None}, "action"),
        ({"action": "search", "stages": None, "candidate": 3}, "candidate"),
        ({"action": "search", "stages": None, "candidate": 0}, "candidate"),
        ({"command": "rm -rf /"}, "command"),
        ({"expected": {"accuracy": 0.5}}, "expected"),
        ({"rationale": None}, "rationale"),
    ],
)
def test_what_lies_outside_the_space_is_refused(change: dict[str, Any], said: str) -> None:
    value = {**_own(Strategy.parse("rtn:bits=4"), "quantization"), **change}
    with pytest.raises(InvalidAnswerError, match=said.replace("(", r"\(")):
        _read(json.dumps(value))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "85", "-0.1"])
def test_expectations_must_be_possible_numbers(number: str) -> None:
    text = decision("search").replace('"value": 0.8', f'"value": {number}')
    with pytest.raises(InvalidAnswerError, match="accuracy"):
        _read(text)


def test_values_may_be_written_as_other_json_types_of_the_same_meaning() -> None:
    stage = {"method": "rtn", "parameters": {"bits": "4", "group_size": 64.0, "symmetric": "True"}}
    read = _read(decision("quantization", stages=[stage]))
    assert read.strategy == canonical(SPACE, Strategy.parse("rtn:bits=4,group_size=64,symmetric=true"))
    assert [type(value) for value in read.strategy.stages[0].parameters.values()] == [int, int, bool]


def test_a_strategy_that_was_tried_or_runs_is_refused_by_its_meaning_not_its_wording() -> None:
    tried = canonical(SPACE, Strategy.parse("rtn:bits=4"))
    written_out = {"method": "rtn", "parameters": {"symmetric": True, "group_size": 128, "bits": 4}}
    with pytest.raises(InvalidAnswerError, match="tried already, in episode 3"):
        _read(
            decision("quantization", stages=[written_out]),
            rules(taken={tried.key: "tried already, in episode 3"}),
        )


@pytest.mark.parametrize(
    ("changes", "refused"),
    [({"may_override": False}, "quantization"), ({"may_end": False}, "end"), ({"may_override": False}, "pipeline")],
)
def test_an_action_that_is_not_allowed_now_is_not_in_the_schema(changes: dict[str, bool], refused: str) -> None:
    allowed = rules(**changes)
    assert refused not in actions(allowed)
    assert refused not in json_schema(decision_model(allowed))["properties"]["action"]["enum"]
    with pytest.raises(InvalidAnswerError, match="action"):
        _read(decision(refused), allowed)


def test_without_the_right_to_override_there_is_no_word_for_stages() -> None:
    only_choose = rules(may_override=False)
    assert "stages" not in json_schema(decision_model(only_choose))["properties"]
    with pytest.raises(InvalidAnswerError, match="stages"):
        _read(decision("search", stages=[{"method": "rtn"}]), only_choose)


def test_search_takes_the_named_candidate_or_the_first() -> None:
    assert _read(decision("search", candidate=2)).candidate == 1
    assert _read(decision("search")).candidate == 0


def test_expectations_become_the_objectives_units() -> None:
    baseline = Objectives(accuracy=0.9, latency_ms=50, memory_gb=4, model_size_gb=2, co2_grams=8)
    value = json.loads(decision("search"))
    value["expected"]["size_ratio"] = {"value": 0.25, "low": 0.5, "high": 0.1}  # ends crossed
    expected = _read(json.dumps(value)).expected.in_units(baseline)
    assert expected == {
        "accuracy": (0.8, 0.7, 0.9),
        "latency_ms": (45.0, 25.0, 75.0),
        "model_size_gb": (0.5, 0.2, 1.0),
    }
    assert set(_read(json.dumps(value)).expected.in_units(None)) == {"accuracy"}


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here it is:\n```json\n{}\n```\nGood luck!",
        'First {{"a": 1}} and then {} — done.',
        "<think>{{not json</think>{}",
        "{}",
    ],
)
def test_the_decision_is_found_among_other_words(text: str) -> None:
    wrapped = text.replace("{}", decision("search", candidate=2)).replace("{{", "{").replace("}}", "}")
    if text.startswith("First"):
        wrapped = 'First {"a": 1} and then ' + decision("search", candidate=2)
    assert _read(wrapped).candidate == 1


@pytest.mark.parametrize(
    "text", ["", "no", "[1, 2]", "{" * 50_000, '{"action": ' * 5000, "[" * 100_000, "null", '"{}"', "{" + "9" * 6000]
)
def test_texts_without_an_object_are_refused_quickly(text: str) -> None:
    with pytest.raises(InvalidAnswerError):
        _read(text)


def test_parameters_named_like_attributes_of_a_model_are_no_problem() -> None:
    method = SPACE.methods[0]
    odd = method.model_copy(
        update={
            "parameters": tuple(
                p.model_copy(update={"name": n})
                for p, n in zip(method.parameters, ("copy", "json", "model_dump"), strict=True)
            )
        }
    )
    allowed = rules(space=SPACE.model_copy(update={"methods": (odd,)}), candidates=())
    read = _read(decision("quantization", stages=[{"method": "rtn", "parameters": {"copy": 4, "json": 64}}]), allowed)
    assert read.strategy.stages[0].parameters == {"copy": 4, "json": 64, "model_dump": True}


def test_reading_does_not_change_the_schema() -> None:
    before = copy.deepcopy(SCHEMA)
    _read(decision("search"))
    assert json_schema(decision_model(RULES)) == before
