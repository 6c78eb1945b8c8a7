"""Answers of a given shape, prompts as token ids and in batches, and embeddings beside answers, over real sockets."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import openai
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentic_compression.runtimes import open_runtime
from agentic_compression.serving.engine import EngineOptions
from tests.integration.serving_servers import PATIENCE_S, Running, Servers

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["cheese", "größe", 'a "quote"']}, "maxItems": 3},
        "address": {"$ref": "#/$defs/address"},
    },
    "required": ["name", "age", "address"],
    "additionalProperties": False,
    "$defs": {
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string", "maxLength": 8}, "open": {"type": "boolean"}},
            "required": ["open"],
            "additionalProperties": False,
        }
    },
}
ASKED = [{"role": "user", "content": "Who loves cheese?"}]


def shaped(schema: Any, **others: Any) -> dict[str, Any]:
    response_format = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {"messages": ASKED, "response_format": response_format, "temperature": 2, **others}


@pytest.mark.parametrize("form", ["dense", "gguf"])
def test_answers_keep_to_a_schema_however_random_the_model(form: str, server: Running) -> None:
    client = server.client()
    answer = client.chat.completions.create(**shaped(PERSON, model=form, n=3, seed=5, max_tokens=300))
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
    texts = [choice.message.content or "" for choice in answer.choices]
    for text in texts:
        jsonschema.validate(json.loads(text), PERSON)
    assert len(set(texts)) > 1
    alone = shaped(PERSON, model=form, seed=6, max_tokens=300)
    pieces = list(client.chat.completions.create(**alone, stream=True))
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert len(pieces) > 10
    assert streamed == client.chat.completions.create(**alone).choices[0].message.content
    jsonschema.validate(json.loads(streamed), PERSON)


@pytest.mark.parametrize("form", ["dense", "gguf"])
def test_json_mode_gives_objects_or_is_cut(form: str, server: Running) -> None:
    answer = server.client().chat.completions.create(
        model=form, messages=ASKED, response_format={"type": "json_object"}, temperature=2, n=5, seed=1, max_tokens=150
    )
    whole = [choice for choice in answer.choices if choice.finish_reason == "stop"]
    assert whole
    assert all(isinstance(json.loads(choice.message.content or ""), dict) for choice in whole)
    cut = server.client().chat.completions.create(**shaped(PERSON, model=form, max_tokens=4))
    assert cut.choices[0].finish_reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(cut.choices[0].message.content or "")


def test_the_client_reads_a_typed_answer(server: Running) -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        river: bool
        bridges: int | None

    parsed = server.client().chat.completions.parse(
        model="dense", messages=ASKED, response_format=City, temperature=2, seed=4, max_tokens=100
    )
    assert isinstance(parsed.choices[0].message.parsed, City)


def test_free_answers_beside_constrained_ones_are_as_alone(server: Running) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0)
    free: dict[str, Any] = {"model": "dense", "messages": ASKED, "temperature": 0, "max_tokens": 60}
    alone = server.client().chat.completions.create(**free).choices[0].message.content

    async def together() -> list[Any]:
        return await asyncio.gather(
            *(client.chat.completions.create(**shaped(PERSON, model="dense", max_tokens=350)) for _ in range(3)),
            client.chat.completions.create(**free),
        )

    *constrained, other = asyncio.run(together())
    assert other.choices[0].message.content == alone
    for answer in constrained:
        jsonschema.validate(json.loads(answer.choices[0].message.content), PERSON)


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "integer", "multipleOf": 9999991}, "compile"),
        ({"type": "object", "properties": {"k": {"$ref": "#"}}, "required": ["k"], "not": {}}, "not"),
        ({"enum": list(range(4100))}, "values"),
        ({"type": "string", "pattern": "(("}, "regex"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_schema_that_cannot_be_kept_to_is_refused_with_the_reason(
    schema: Any, word: str, stream: bool, server: Running
) -> None:
    response = server.post("/v1/chat/completions", json=shaped(schema, model="dense", stream=stream))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_json_schema", "response_format")
    assert word in error["message"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        "json",
    ],
)
def test_a_malformed_response_format_is_refused(wrong: Any, server: Running) -> None:
    response = server.post("/v1/chat/completions", json={"model": "dense", "messages": ASKED, "response_format": wrong})
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith("response_format")


KEYWORDS = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "anyOf",
        "allOf",
        "oneOf",
        "$ref",
        "enum",
        "pattern",
        "minimum",
        "multipleOf",
        "required",
        "minItems",
        "$defs",
        "format",
        "const",
        "additionalProperties",
        "x-guidance",
    ]
)
ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=5),
        st.sampled_from(["object", "string", "integer", "#", "#/$defs/a", "^a+$", "\ud800", "date"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KEYWORDS, ANYTHING, max_size=4))
def test_any_schema_is_kept_to_or_refused(server: Running, schema: dict[str, Any]) -> None:
    body = json.dumps(shaped(schema, model="dense", max_tokens=3)).encode()
    response = server.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code in {200, 400, 422}, response.text
    if response.status_code != 200:
        assert response.json()["error"]["param"].startswith("response_format")


def test_a_client_that_leaves_while_its_schema_is_compiled_leaves_nothing(server: Running) -> None:
    slow = {"type": "integer", "multipleOf": 9_999_973}  # takes all the seconds that a trial may take
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=shaped(slow, model="dense"), timeout=0.5)
    loaded = server.pool.models["dense"].loaded
    assert loaded is not None
    began = time.monotonic()
    assert server.client().completions.create(model="dense", prompt="a", max_tokens=2).choices
    assert time.monotonic() - began < 10, "others do not wait for the compiler"
    server.wait_until(lambda: loaded.users == 0 and loaded.engine.requests == 0)


@pytest.mark.parametrize("form", ["dense", "gguf"])
def test_prompts_in_batches_and_as_token_ids(form: str, server: Running, served_folders: dict[str, Path]) -> None:
    client = server.client()
    options: dict[str, Any] = {"model": form, "max_tokens": 8, "seed": 3, "n": 2}
    options["temperature"] = 1.2 if form == "dense" else 0  # a batch of another shape rounds float16 otherwise
    texts = ["Once there was", "Put 3 1 2 in order", "Jana"]
    single = [client.completions.create(prompt=text, **options) for text in texts]
    expected = [choice.text for answer in single for choice in answer.choices]
    tokenizer = open_runtime(served_folders["dense"], threads=1).tokenizer
    ids = [list(tokenizer(text)["input_ids"]) for text in texts]
    for prompts in (texts, ids):
        answer = client.completions.create(prompt=prompts, **options)
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert [choice.text for choice in answer.choices] == expected
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert [item.text for item in client.completions.create(prompt=ids[1], **options).choices] == expected[2:4]
    streamed = [""] * 6
    for piece in client.completions.create(prompt=ids, **options, stream=True):
        for choice in piece.choices:
            streamed[choice.index] += choice.text
    assert streamed == expected


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("completions", {"prompt": [1, 99_999]}, 400, "invalid_token"),
        ("completions", {"prompt": [[1], [-4]]}, 400, "invalid_token"),
        ("completions", {"prompt": ["a", [1]]}, 422, "invalid_request"),
        ("completions", {"prompt": [[]]}, 422, "invalid_request"),
        ("completions", {"prompt": ["a"] * 129}, 422, "invalid_request"),
        ("completions", {"prompt": ["a"] * 65, "n": 2}, 422, "invalid_request"),
        ("embeddings", {"input": [[1, 99_999]]}, 400, "invalid_token"),
        ("embeddings", {"input": [-1]}, 400, "invalid_token"),
        ("embeddings", {"input": [[1], []]}, 422, "invalid_request"),
    ],
)
def test_wrong_prompts_are_refused(path: str, body: dict[str, Any], status: int, code: str, server: Running) -> None:
    response = server.post(f"/v1/{path}", json={"model": "dense", **body})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("form", ["dense", "gguf"])
def test_embeddings_of_token_ids_and_of_texts_read_in_pieces(
    form: str, server: Running, served_folders: dict[str, Path]
) -> None:
    runtime = open_runtime(served_folders[form], threads=1)
    long = "Jana loves cheese. " * 70
    ids = [list(runtime.tokenizer(text)["input_ids"]) for text in (long, "Put 3 2 in order")]
    assert 256 < len(ids[0]) <= 512, "more than one piece"
    expected = runtime.embed([long, "Put 3 2 in order"])
    client = server.client()
    for texts in ([long, "Put 3 2 in order"], ids):
        found = client.embeddings.create(model=form, input=texts, encoding_format="float")
        assert np.allclose([item.embedding for item in found.data], expected, atol=2e-3)
        assert found.usage.prompt_tokens == len(ids[0]) + len(ids[1])
    one = client.embeddings.create(model=form, input=ids[1], encoding_format="float")
    assert np.allclose(one.data[0].embedding, expected[1], atol=2e-3)


@pytest.mark.parametrize("form", ["dense", "gguf"])
def test_embeddings_do_not_hold_up_answers_and_end_when_nobody_waits(
    form: str, servers: Servers, endless_folders: dict[str, Path]
) -> None:
    texts = ["Jana loves cheese. " * 70] * 250

    def give_up_on_embeddings() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/v1/embeddings", json={"model": form, "input": texts}, timeout=1.5)

    with servers.running({form: endless_folders[form]}) as running, httpx.Client(timeout=PATIENCE_S) as client:
        body = {"model": form, "prompt": "Once", "max_tokens": 400, "temperature": 0, "stream": True}
        client.post(f"{running.url}/v1/completions", json={**body, "max_tokens": 1, "stream": False})
        loaded = running.pool.models[form].loaded
        assert loaded is not None
        with client.stream("POST", f"{running.url}/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            embeddings = threading.Thread(target=give_up_on_embeddings)
            embeddings.start()
            meanwhile = 0
            while embeddings.is_alive():
                meanwhile += bool(next(lines))
        assert meanwhile >= 5, "all texts at once would take many seconds"
        running.wait_until(lambda: loaded.users == 0 and loaded.engine.requests == 0 and loaded.engine.running == 0)
        time.sleep(0.5)  # the piece that was under way
        engine = psutil.Process(loaded.engine.info.pid)
        before = sum(engine.cpu_times()[:2])
        time.sleep(1.0)
        assert sum(engine.cpu_times()[:2]) - before < 0.2, "nothing is computed for a client that has gone"


def test_a_cache_smaller_than_the_context_is_respected(servers: Servers, served_folders: dict[str, Path]) -> None:
    folders: dict[str, Any] = {form: served_folders[form] for form in ("dense", "gguf")}
    with servers.running(folders, engine=EngineOptions(cache_tokens=256)) as running:
        for form in folders:
            body = {"model": form, "prompt": "one two three " * 60, "max_tokens": 100, "truncation": "disabled"}
            refused = running.post("/v1/completions", json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
            assert "cache of 256" in error["message"]
            assert "512" in error["message"]
            shorter = running.client().completions.create(
                model=form, prompt=["a b c"] * 12, max_tokens=40, temperature=0
            )
            assert len({choice.text for choice in shorter.choices}) == 1
            cut = running.post("/v1/completions", json={**body, "truncation": "auto"})
            assert cut.status_code == 200
            assert cut.json()["usage"]["total_tokens"] <= 256
