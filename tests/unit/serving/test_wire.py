"""Bodies of requests as official clients send them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import ValidationError

from agentic_compression.serving.app import create_app
from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.pool import ModelPool, PoolOptions
from agentic_compression.serving.wire import ChatRequest, CompletionRequest, EmbeddingRequest
from agentic_compression.settings import Settings


def test_an_answer_may_be_sent_back_as_history() -> None:
    answer = ChatCompletionMessage.model_validate({"role": "assistant", "content": "yes", "refusal": None})
    for told in (answer.model_dump(), answer.model_dump(exclude_unset=True), {**answer.model_dump(), "tool_calls": []}):
        body = ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}, told]})
        assert body.messages[1].plain() == {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize("extra", [{"tool_calls": [{"id": "1"}]}, {"refusal": "no"}, {"audio": {"id": "1"}}])
def test_what_cannot_be_shown_to_a_model_is_refused(extra: dict[str, object]) -> None:
    message = {"role": "assistant", "content": "yes", **extra}
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"model": "m", "messages": [message]})


MANY = 330_000
HELLO = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatRequest, {"messages": [{}] * MANY}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
        (ChatRequest, {"messages": [HELLO | {f"f{number}": 0 for number in range(MANY)}]}),
        (ChatRequest, {"messages": [HELLO]} | {f"f{number}": 0 for number in range(MANY)}),
        (ChatRequest, {"messages": [HELLO], "stop": [0] * 4}),
        (CompletionRequest, {"prompt": [None] * MANY}),
        (CompletionRequest, {"prompt": [[None] * MANY]}),
        (CompletionRequest, {"prompt": [[None] * 1000] * 128}),
        (EmbeddingRequest, {"input": [{}] * 256}),
        (EmbeddingRequest, {"input": [[None] * 1000] * 256}),
    ],
)
def test_a_body_of_faults_costs_no_more_than_one_of_them(kind: type[Any], body: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "m", **body})
    assert len(caught.value.errors()) <= 5  # one for each form that a field may have
    assert time.process_time() - began < 1


def test_a_body_of_a_megabyte_of_faults_is_answered_at_once() -> None:
    launcher: Any = SimpleNamespace()
    metrics = Metrics()
    app = create_app(
        ModelPool({}, EngineOptions(), PoolOptions(), metrics, launcher), metrics, Settings(_env_file=None)
    )
    text = b'{"model": "m", "messages": [' + b",".join([b"{}"] * MANY) + b"]}"

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post("/v1/chat/completions", content=text, headers={"Content-Type": "application/json"})

    began = time.process_time()
    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "messages.0.role")
    assert len(answer.content) < 1000
    assert time.process_time() - began < 2
