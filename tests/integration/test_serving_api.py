"""The server over real sockets, asked by OpenAI's own client: what it answers is what the runtimes answer."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from agentic_compression.runtimes import GenerationOptions, Runtime, open_runtime
from tests.integration.serving_servers import PATIENCE_S, Running, Servers

FORMS = ("dense", "packed", "gguf")
QUESTIONS = (
    "Put 6 3 4 3 3 in order.",
    "Name these backwards: key candle hat compass.",
    "What does Jana Marek love to eat?",
    "Put 9 1 in order.",
)


@pytest.fixture(scope="module")
def runtimes(served_folders: dict[str, Path]) -> dict[str, Runtime]:
    return {name: open_runtime(folder, threads=1) for name, folder in served_folders.items()}


def chat_ids(runtime: Runtime, question: str) -> list[int]:
    text = f"<s>Question: {question}\nAnswer:"
    return list(runtime.tokenizer(text, add_special_tokens=False)["input_ids"])


def ask(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


@pytest.mark.parametrize("form", FORMS)
def test_greedy_answers_equal_those_of_the_runtime(form: str, server: Running, runtimes: dict[str, Runtime]) -> None:
    """All questions at once, so that they are answered in one batch of different lengths."""
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE_S, max_retries=0)

    async def answers() -> list[Any]:
        calls = (
            client.chat.completions.create(model=form, messages=ask(question), temperature=0, max_tokens=24)
            for question in QUESTIONS
        )
        return await asyncio.gather(*calls)

    prompts = [chat_ids(runtimes[form], question) for question in QUESTIONS]
    expected = runtimes[form].generate(prompts, GenerationOptions(24), 1)
    for answer, completion, prompt in zip(asyncio.run(answers()), expected, prompts, strict=True):
        assert answer.choices[0].message.content == completion.text
        assert answer.choices[0].finish_reason == ("length" if len(completion.ids) == 24 else "stop")
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.completion_tokens - len(completion.ids) in {0, 1}  # the end-of-sequence token counts
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("form", ["dense", "gguf"])
def test_a_seeded_draw_equals_that_of_the_runtime(form: str, server: Running, runtimes: dict[str, Runtime]) -> None:
    options = GenerationOptions(20, temperature=1.3, top_p=0.95, seed=7)
    prompt = runtimes[form].tokenizer("Once there was")["input_ids"]
    expected = "".join(piece.text for piece in runtimes[form].stream(prompt, options))
    answer = server.client().completions.create(
        model=form, prompt="Once there was", max_tokens=20, temperature=1.3, top_p=0.95, seed=7
    )
    assert answer.choices[0].text == expected


@pytest.mark.parametrize("form", FORMS)
def test_streamed_pieces_make_the_whole_answer(form: str, server: Running) -> None:
    client = server.client()
    options: dict[str, Any] = {"model": form, "messages": ask(QUESTIONS[1]), "temperature": 0}
    whole = client.chat.completions.create(**options)
    pieces = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == whole.choices[0].message.content
    assert [piece.choices[0].finish_reason for piece in pieces[:-1] if piece.choices[0].finish_reason] == ["stop"]
    assert pieces[-1].choices == []
    assert pieces[-1].usage == whole.usage
    assert all(piece.usage is None for piece in pieces[:-1])
    assert len({piece.id for piece in pieces}) == 1


def test_an_async_stream_is_read_by_the_client(server: Running) -> None:
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=PATIENCE_S)

    async def talk() -> str:
        stream = await client.chat.completions.create(
            model="dense", messages=ask(QUESTIONS[0]), temperature=0, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(talk()).strip() == "33346"


def test_stop_strings_and_choices(server: Running) -> None:
    client = server.client()
    cut = client.chat.completions.create(model="dense", messages=ask(QUESTIONS[1]), temperature=0, stop=["candle"])
    assert cut.choices[0].message.content == " compass hat "
    assert cut.choices[0].finish_reason == "stop"
    drawn = client.completions.create(
        model="dense", prompt="Once", n=3, max_tokens=8, temperature=2.0, seed=3, stream=False
    )
    texts = [choice.text for choice in drawn.choices]
    assert [choice.index for choice in drawn.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    single = client.completions.create(model="dense", prompt="Once", max_tokens=8, temperature=2.0, seed=5)
    assert single.choices[0].text == texts[2]
    streamed: dict[int, str] = {0: "", 1: "", 2: ""}
    for piece in client.completions.create(
        model="dense", prompt="Once", n=3, max_tokens=8, temperature=2.0, seed=3, stream=True
    ):
        for choice in piece.choices:
            streamed[choice.index] += choice.text
    assert list(streamed.values()) == texts


def test_log_probabilities_equal_the_runtimes_scores(server: Running, runtimes: dict[str, Runtime]) -> None:
    answer = server.client().chat.completions.create(
        model="dense", messages=ask(QUESTIONS[0]), temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    runtime = runtimes["dense"]
    prompt = chat_ids(runtime, QUESTIONS[0])
    for entry in entries:
        (token,) = (token for token in range(runtime.vocabulary) if runtime.tokenizer.decode([token]) == entry.token)
        ((expected, _),) = runtime.score([(prompt, [token])], 1)
        assert entry.logprob == pytest.approx(expected, abs=1e-3)
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)
        assert len(entry.top_logprobs) == 2
        prompt = [*prompt, token]
    plain = server.client().completions.create(model="dense", prompt="Once", temperature=0, max_tokens=3, logprobs=1)
    found = plain.choices[0].logprobs
    assert found is not None
    assert "".join(found.tokens or ()) == plain.choices[0].text
    assert found.text_offset == [0, len(found.tokens[0]), len(found.tokens[0]) + len(found.tokens[1])]  # type: ignore[index]


@pytest.mark.parametrize("form", ["dense", "gguf"])
def test_embeddings_equal_the_runtimes(form: str, server: Running, runtimes: dict[str, Runtime]) -> None:
    texts = ["Jana loves cheese.", "Put 3 2 in order, and then some more words"]
    expected = runtimes[form].embed(texts)
    client = server.client()
    floats = client.embeddings.create(model=form, input=texts, encoding_format="float")
    assert np.allclose([item.embedding for item in floats.data], expected, atol=2e-3)
    raw = server.post("/v1/embeddings", json={"model": form, "input": texts[0], "encoding_format": "base64"}).json()
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert np.allclose(struct.unpack(f"<{len(packed) // 4}f", packed), floats.data[0].embedding)
    assert floats.usage.prompt_tokens == sum(len(runtimes[form].tokenizer(text)["input_ids"]) for text in texts)


def test_a_long_chat_keeps_its_system_message_and_its_newest_turn(server: Running) -> None:
    turns = [{"role": "system", "content": "SYSTEM"}]
    for number in range(60):
        turns += [{"role": "user", "content": f"Put {number} 3 1 in order."}, {"role": "assistant", "content": "no"}]
    turns.append({"role": "user", "content": QUESTIONS[0]})
    body = {"model": "dense", "messages": turns, "temperature": 0, "max_tokens": 12}
    response = server.post("/v1/chat/completions", json=body)
    answer = response.json()
    assert response.status_code == 200, answer
    assert response.headers["x-acf-truncated"] == "true"
    assert answer["truncated"] is True
    assert answer["usage"]["prompt_tokens"] <= 500
    refused = server.post("/v1/chat/completions", json={**body, "truncation": "disabled"})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    short = server.post("/v1/chat/completions", json={**body, "messages": turns[-1:]})
    assert short.json()["truncated"] is False
    assert "x-acf-truncated" not in short.headers


CHAT = {"model": "dense", "messages": [{"role": "user", "content": "a"}]}
TEXT = {"model": "dense", "prompt": "a"}


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("chat/completions", {**CHAT, "model": "nope"}, 404, "model_not_found", "model"),
        ("chat/completions", {**CHAT, "messages": []}, 422, "invalid_request", "messages"),
        ("chat/completions", {**CHAT, "tmperature": 1}, 422, "invalid_request", "tmperature"),
        ("chat/completions", {**CHAT, "temperature": 2.5}, 422, "invalid_request", "temperature"),
        ("chat/completions", {**CHAT, "tools": [{}]}, 400, "unsupported_parameter", "tools"),
        (
            "completions",
            {**TEXT, "response_format": {"type": "json_object"}},
            400,
            "unsupported_parameter",
            "response_format",
        ),
        ("completions", {**TEXT, "prompt": [99999]}, 400, "invalid_token", "prompt"),
        ("completions", {**TEXT, "echo": True}, 400, "unsupported_parameter", "echo"),
        ("completions", {**TEXT, "prompt": "a" * 60_000}, 413, "body_too_large", None),
        ("embeddings", {"model": "dense", "input": "a", "dimensions": 3}, 400, "unsupported_parameter", "dimensions"),
        ("embeddings", {"model": "dense", "input": ""}, 422, "invalid_request", "input"),
        ("embeddings", {"model": "dense", "input": ["a", [5]]}, 422, "invalid_request", "input"),
        ("completions", {**TEXT, "prompt": [[1], [2, "a"]]}, 422, "invalid_request", "prompt.1.1"),
        ("models/nope", None, 404, "model_not_found", "model"),
        ("nowhere", None, 404, "route_not_found", None),
        ("completions", None, 405, "method_not_allowed", None),
    ],
)
def test_every_error_has_the_one_envelope(
    path: str, body: Any, status: int, code: str, param: str | None, server: Running
) -> None:
    method = "GET" if body is None else "POST"
    response = httpx.request(method, f"{server.url}/v1/{path}", json=body, timeout=PATIENCE_S)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert param is None or error["param"] == param
    assert set(error) == {"code", "type", "message", "param", "suggestions", "request_id"}
    assert error["request_id"] == response.headers["x-request-id"]


def test_bodies_that_are_no_json_or_no_text(server: Running) -> None:
    broken = server.post("/v1/completions", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    half = json.dumps({"model": "dense", "prompt": "\ud800"}).encode()
    surrogate = server.post("/v1/completions", content=half, headers={"content-type": "application/json"})
    assert surrogate.status_code == 422
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().models.retrieve("nope")
    assert caught.value.code == "model_not_found"


def test_request_ids_are_taken_checked_and_returned(server: Running) -> None:
    assert server.get("/health", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    refused = server.get("/health", headers={"X-Request-ID": "two words"})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_request_id"
    assert server.get("/health").headers["x-request-id"] != server.get("/health").headers["x-request-id"]


def test_models_health_and_metrics(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == list(FORMS)
    assert client.models.retrieve("gguf").id == "gguf"
    before = server.metric("acf_serve_completion_tokens_total", model="dense")
    answer = client.completions.create(model="dense", prompt="Once", max_tokens=5, temperature=0)
    assert answer.usage is not None
    after = server.metric("acf_serve_completion_tokens_total", model="dense")
    assert after - before == answer.usage.completion_tokens
    assert server.metric("acf_serve_requests_total", route="/v1/completions", outcome="2xx") >= 1
    assert server.metric("acf_serve_first_token_seconds_count", model="dense") >= 1
    assert server.metric("acf_serve_loads_total", model="dense", outcome="loaded") == 1
    state = server.get("/health/detailed").json()
    assert state["status"] == "ok"
    assert state["models"]["dense"]["engine"]["batched"] is True
    assert state["models"]["dense"]["running"] == 0
    memory = server.get("/health/memory").json()
    assert memory["engine_bytes"]["dense"] > 1_000_000
    assert memory["leak_suspected"] is False


@pytest.fixture(scope="module")
def endless(servers: Servers, endless_folders: dict[str, Path]) -> Iterator[Running]:
    """Models whose answers are as long as they may be."""
    with servers.running(dict(endless_folders)) as running:
        yield running


@pytest.mark.parametrize("form", ["dense", "gguf"])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_its_slots(form: str, streamed: bool, endless: Running) -> None:
    body = {"model": form, "prompt": "Once", "max_tokens": 480, "temperature": 0, "stream": streamed, "n": 8}
    endless.client().completions.create(model=form, prompt="a", max_tokens=1)
    loaded = endless.pool.models[form].loaded
    assert loaded is not None
    tokens = endless.metric("acf_serve_completion_tokens_total", model=form)
    left = endless.metric("acf_serve_disconnects_total", route="/v1/completions")
    with httpx.Client(timeout=PATIENCE_S) as client:
        if streamed:
            with client.stream("POST", f"{endless.url}/v1/completions", json=body) as response:
                lines = response.iter_lines()  # kept: httpx hangs up when its iterator is dropped
                next(lines)
                endless.wait_until(lambda: loaded.engine.running == 8)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{endless.url}/v1/completions", json=body, timeout=0.3)
    endless.wait_until(lambda: loaded.users == 0 and loaded.engine.running == 0)
    assert loaded.engine.requests == 0
    assert endless.metric("acf_serve_completion_tokens_total", model=form) - tokens < 8 * 480
    endless.wait_until(lambda: endless.metric("acf_serve_disconnects_total", route="/v1/completions") == left + 1)
