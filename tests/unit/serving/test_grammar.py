"""Masks that keep answers to a schema: whatever is drawn from what they allow validates."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import sys
import time
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer, TokenizerWrapper
from transformers import AutoTokenizer

from agentic_compression.demo import model_path
from agentic_compression.serving.engine import EngineBusyError, PromptError
from agentic_compression.serving.grammar import Grammar, GrammarReader
from agentic_compression.serving.schema_trial import _Bytes, compile_schema, try_schema
from agentic_compression.serving.structured import JSON_OBJECT, schema_text

TOKENIZER = AutoTokenizer.from_pretrained(model_path())
END = int(TOKENIZER.eos_token_id)
READER = GrammarReader(TOKENIZER, {END})

NAMES = st.sampled_from(["name", "a b", "größe", 'quo"te', "x", "y"])
LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-99, 99),
        st.integers(0, 500),
    ),
    st.builds(lambda low: {"type": "number", "minimum": low, "exclusiveMaximum": low + 3}, st.integers(-9, 9)),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 3),
        st.integers(0, 5),
    ),
    st.sampled_from(
        [{"type": "string", "pattern": "^[a-f]{2,4}-[0-9]+$", "maxLength": 9}, {"type": "string", "format": "date"}]
    ),
    st.lists(st.one_of(st.text(max_size=4), st.integers(-5, 5), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.text('aé\U0001f600"\\\n', max_size=4).map(lambda value: {"const": value}),
)


def objects(inner: Any) -> Any:
    def build(properties: dict[str, Any], required: int) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties)[:required],
            "additionalProperties": False,
        }

    return st.builds(build, st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 3))


def arrays(inner: Any) -> Any:
    return st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        objects(inner) | arrays(inner) | st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})
    ),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Schemas of these tests compile at once, so that no process is started for each."""
    if "hostile" not in request.node.name:
        monkeypatch.setattr("agentic_compression.serving.grammar.try_schema", lambda schema: None)


def draw(grammar: Grammar, seed: int, tokens: int) -> tuple[str, bool]:
    """An answer of a model that knows nothing: every token that is allowed is as likely; and whether it is whole."""
    generator, ids = random.Random(seed), []
    for _ in range(tokens):
        grammar.wait(5)
        masked = grammar.mask(np.zeros(len(TOKENIZER), dtype=np.float32))
        token = generator.choice(np.flatnonzero(np.isfinite(masked)).tolist())
        if token == END:
            return TOKENIZER.decode(ids), True
        ids.append(token)
        if grammar.accept(token):
            return TOKENIZER.decode(ids), True
    return TOKENIZER.decode(ids), False


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(SCHEMAS, st.integers(0, 1000))
def test_whatever_is_drawn_validates(schema: dict[str, Any], seed: int) -> None:
    try:
        grammar = READER.open(schema_text(schema))
    except PromptError:
        assume(False)
    text, whole = draw(grammar, seed, 600)
    assert whole, text
    jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


def test_json_objects_parse_and_several_answers_share_a_schema() -> None:
    first, second = READER.open(JSON_OBJECT), READER.open(JSON_OBJECT)
    whole = 0
    for seed, grammar in enumerate([first, second, *(READER.open(JSON_OBJECT) for _ in range(30))]):
        text, ended = draw(grammar, seed, 300)
        if ended:
            assert isinstance(json.loads(text), dict)
            whole += 1
    assert whole > 5


def test_an_answer_of_a_model_without_an_end_token_ends_with_its_object() -> None:
    reader = GrammarReader(TOKENIZER, ())
    schema = '{"type":"object","properties":{"a":{"enum":[1,2]}},"required":["a"],"additionalProperties":false}'
    text, whole = draw(reader.open(schema), 3, 100)
    assert whole
    assert json.loads(text)["a"] in {1, 2}


@pytest.mark.parametrize(
    "schema",
    [
        '{"allOf":[{"type":"integer","multipleOf":97},{"type":"integer","multipleOf":89},{"multipleOf":83}]}',
        '{"type":"integer","multipleOf":9999991}',
        '{"$ref":"#"}',
        '{"$ref":"https://example.com/schema.json"}',
        '{"type":"object","properties":{"k":{"$ref":"#/nowhere"}}}',
        '{"type":"string","pattern":"(("}',
        '{"type":"string","pattern":"^(([a-z]{1,100}){1,100}){1,100}$","minLength":5000}',
        '{"not":{}}',
        '{"x-guidance":{"lenient":true},"if":{}}',
        '{"type":"string","minLength":5,"maxLength":2}',
        '{"type":"nothing"}',
        '{"enum":[]}',
    ],
)
def test_a_hostile_schema_is_refused_in_time_with_a_reason(schema: str) -> None:
    began = time.monotonic()
    for _ in range(2):
        with pytest.raises(PromptError, match=r"got: .{5,}; change it") as caught:
            READER.open(schema)
        assert caught.value.code == "invalid_json_schema"
    assert time.monotonic() - began < 40


def test_hostile_schemas_cannot_hang_or_crash_the_trial() -> None:
    def hung(*_: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired("trial", options["timeout"])

    def ending_by(number: int) -> Any:
        command = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})"]
        return lambda *_, **__: subprocess.run(command, capture_output=True, check=False)

    with pytest.raises(EngineBusyError):
        try_schema("{}", hung)
    for number in (signal.SIGKILL, signal.SIGABRT):  # by whom it was ended is not known
        with pytest.raises(EngineBusyError, match="send it later"):
            try_schema("{}", ending_by(number))
    assert "more than 2 s" in str(try_schema("{}", ending_by(signal.SIGXCPU)))


def test_a_hostile_machine_that_kills_a_trial_does_not_make_its_schema_a_bad_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(schema: str) -> str | None:
        command = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
        return try_schema(schema, lambda *_, **__: subprocess.run(command, capture_output=True, check=False))

    reader, schema = GrammarReader(TOKENIZER, {END}), '{"type":"integer","minimum":3}'
    monkeypatch.setattr("agentic_compression.serving.grammar.try_schema", killed)
    with pytest.raises(EngineBusyError):
        reader.open(schema)
    assert not reader.knows(schema)
    monkeypatch.undo()
    assert isinstance(reader.open(schema), Grammar)


def test_a_trial_that_lacks_memory_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from agentic_compression.serving import schema_trial

    def lacking(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("resource.setrlimit", lambda *_: None)  # of this process
    monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
    monkeypatch.setattr(schema_trial, "_walk", lacking)
    schema_trial._main()
    assert "more memory" in capsys.readouterr().out


def test_a_schema_that_is_too_large_is_refused_before_an_engine_sees_it() -> None:
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"items": deep}
    for schema, limit in (
        (deep, "levels"),
        ({"enum": list(range(5000))}, "values"),
        ({"description": "x" * 40_000}, "bytes"),
        ({"minimum": float("nan")}, "finite"),
    ):
        with pytest.raises(PromptError, match=limit):
            schema_text(schema)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(PromptError, match=r"not available, because .*install llguidance") as caught:
        GrammarReader(TOKENIZER, {END}).open(JSON_OBJECT)
    assert caught.value.code == "response_format_unavailable"


LAID_OUT = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": {"type": "string"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        *((json.dumps({"a": [1, 2], "b": "x  y"}, indent=indent), True) for indent in (None, 0, 2, 4)),
        ('{"a":[1,2],"b":"x"}', True),
        ('{"a":  [1],"b":"x"}', False),
        ('{\n\n"a":[1],"b":"x"}', False),
        ('{"a": \n[1],"b":"x"}', False),
        (f'{{\n{" " * 8}"a":[1],"b":"x"}}', True),
        (f'{{\n{" " * 9}"a":[1],"b":"x"}}', False),
    ],
)
def test_the_usual_layouts_are_allowed_and_no_more_blanks(text: str, allowed: bool) -> None:
    vocabulary = LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
    matcher = compile_schema(json.dumps(LAID_OUT), vocabulary)
    taken = matcher.try_consume_tokens(list(text.encode()))
    assert (taken == len(text) and matcher.is_accepting()) == allowed
