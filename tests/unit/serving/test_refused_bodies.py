"""Bodies that do not fit: one message in the words of the wire format, at a place that the client sent."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentic_compression.serving.app import create_app
from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.errors import refused_body
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.pool import ModelPool, PoolOptions
from agentic_compression.settings import Settings

HELLO = {"role": "user", "content": "a"}
CHAT = {"model": "m", "messages": [HELLO]}
TEXT = {"model": "m", "prompt": "a"}
INPUT = {"model": "m", "input": "a"}
VALID: dict[str, dict[str, Any]] = {"chat/completions": CHAT, "completions": TEXT, "embeddings": INPUT}
PROMPTS = "must be a string, a list of strings, a list of token ids or a list of lists of them, got"
LEAKS = re.compile(r"0x[0-9a-f]{4}|function-|functools|validator at|constrained|list\[|_check|TextPart|tagged|Format\b")

# Every key and text is of these letters or a word of the format, so that whatever else an answer says is its own.
WORDS = st.sampled_from(
    ["a", "str", "text", "json_schema", "json_object", "name", "schema", "type", "role", "content", "user", "\ud800"]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 40), 1 << 40), st.floats(allow_nan=False), WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url"])}, optional={"text": VALUES, "url": VALUES}
)
FORMATS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", "xml"])},
    optional={
        "json_schema": VALUES | st.fixed_dictionaries({"name": VALUES}, optional={"schema": VALUES, "strict": VALUES}),
        "a": VALUES,
    },
)
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "prompt": VALUES,
        "input": VALUES,
        "stop": VALUES,
        "metadata": VALUES,
        "stream_options": VALUES,
        "response_format": VALUES | FORMATS,
        "messages": VALUES
        | st.lists(
            st.fixed_dictionaries({"role": st.just("user")}, optional={"content": VALUES | st.lists(PARTS)}), max_size=3
        ),
        "top_logprobs": VALUES,
    },
)


@pytest.fixture(scope="module")
def app() -> FastAPI:
    launcher: Any = SimpleNamespace()
    metrics = Metrics()
    limits = Settings(_env_file=None, serve_requests_per_minute=1_000_000)
    return create_app(ModelPool({}, EngineOptions(), PoolOptions(), metrics, launcher), metrics, limits)


def ask(app: FastAPI, route: str, body: Any) -> tuple[int, dict[str, Any]]:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            text = json.dumps(body).encode()
            return await client.post(f"/v1/{route}", content=text, headers={"Content-Type": "application/json"})

    response = asyncio.run(send())
    return response.status_code, response.json()["error"]


def names(document: Any) -> set[str]:
    """Every field of every body, by the served document."""
    if isinstance(document, list):
        return set().union(*map(names, document))
    if not isinstance(document, dict):
        return set()
    return set(document.get("properties", ())) | names(list(document.values()))


def lies_in(parts: list[str], value: Any, fields: set[str]) -> bool:
    """Whether a path leads into a body; its last part may be a field that is missing there."""
    if not parts:
        return True
    if isinstance(value, list):
        return parts[0].isdigit() and int(parts[0]) < len(value) and lies_in(parts[1:], value[int(parts[0])], fields)
    if not isinstance(value, dict):
        return False
    if parts[0] in value:
        return lies_in(parts[1:], value[parts[0]], fields)
    return len(parts) == 1 and parts[0] in fields


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(VALID)), CHANGES)
@example("embeddings", {"input": ["hello", [5, 6]]})
@example("completions", {"prompt": ["a", [1, 2]]})
@example("chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"name": 1}, "a": 1}})
def test_a_fault_lies_at_fields_and_indexes_that_were_sent(app: FastAPI, route: str, changes: dict[str, Any]) -> None:
    body = VALID[route] | changes
    status, error = ask(app, route, body)
    if status != 422:
        return
    sent = json.loads(json.dumps(body).replace("\\ud800", "?"))  # as an answer can say it
    fields = names(app.openapi())
    places = [error["param"]] if error["param"] else []
    places += [hint.partition(": ")[0] for hint in error["suggestions"]]
    for place in places:
        assert place == "the body" or lies_in(place.split("."), sent, fields), error
    assert error["message"].startswith(f"{error['param'] or 'the body'}: ")
    assert not LEAKS.search(json.dumps(error)), error


@pytest.mark.parametrize(
    ("route", "changes", "param", "said"),
    [
        ("embeddings", {"input": ["hello", [5, 6]]}, "input", f"{PROMPTS} a list with a string and a list"),
        ("completions", {"prompt": ["a", [1, 2]]}, "prompt", f"{PROMPTS} a list with a string and a list"),
        (
            "completions",
            {"prompt": [1, "a", True]},
            "prompt",
            f"{PROMPTS} a list with a number and a string and",
        ),
        ("embeddings", {"input": {"str": 1}}, "input", f"{PROMPTS} an object"),
        ("embeddings", {"input": None}, "input", f"{PROMPTS} null"),
        ("embeddings", {"input": ""}, "input", "at least 1"),
        ("embeddings", {"input": []}, "input", "at least 1"),
        ("embeddings", {"input": ["a"] * 257}, "input", "at most 256"),
        ("embeddings", {"input": [[1], ["a"]]}, "input.1.0", "valid integer"),
        ("embeddings", {"input": [[1], []]}, "input.1", "at least 1"),
        ("completions", {"prompt": [1 << 40]}, "prompt.0", "less than"),
        ("completions", {"prompt": ["a", "\ud800"]}, "prompt.1", "must be Unicode text"),
        ("completions", {"stop": 5}, "stop", "must be a string or a list of strings, got a number"),
        ("completions", {"stop": ["a"] * 5}, "stop", "at most 4"),
        ("chat/completions", {"messages": [HELLO, {**HELLO, "content": 5}]}, "messages.1.content", "got a number"),
        (
            "chat/completions",
            {"messages": [{**HELLO, "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        (
            "chat/completions",
            {"response_format": {"type": "xml"}},
            "response_format",
            "whose type is text, json",
        ),
        (
            "chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
            "pattern",
        ),
        (
            "chat/completions",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "required",
        ),
        ("chat/completions", {"top_logprobs": 1}, None, "the body: top_logprobs needs logprobs: true"),
    ],
)
def test_the_form_that_was_meant_is_explained(
    route: str, changes: dict[str, Any], param: str | None, said: str, app: FastAPI
) -> None:
    status, error = ask(app, route, VALID[route] | changes)
    assert (status, error["param"]) == (422, param), error
    assert said in error["message"]


def test_names_of_a_validator_are_left_out() -> None:
    """Also where a union is not annotated: only what the body has, or lacks, is named."""
    fault = {"type": "string_type", "loc": ("body", "a", "function-after[f at 0x7fab12()]", 0, "str"), "msg": "no"}
    error = refused_body([fault, {**fault, "type": "missing", "loc": ("body", "tag", "b")}], {"a": [1], "tag": {}})
    assert (error.param, str(error), error.suggestions) == ("a.0", "a.0: no", ("tag.b: no",))
    assert refused_body([{"type": "missing", "loc": ("body",), "msg": "Field required"}], None).param is None
