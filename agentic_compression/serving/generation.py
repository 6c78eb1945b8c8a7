"""Chats and completions: from a checked body to an answer, whole or streamed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agentic_compression.serving.answers import Answer, ChoiceState
from agentic_compression.serving.engine import Delta, Generation, Prepared
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.pool import Loaded, ModelPool
from agentic_compression.serving.streams import EventStream, while_connected
from agentic_compression.serving.wire import ChatRequest, CompletionRequest

__all__ = ["answer_generation", "read_generations", "version_headers"]

Pieces = AsyncGenerator[Prepared | Delta, None]


def read_generations(body: ChatRequest | CompletionRequest) -> list[Generation]:
    """What the engine is asked: for every prompt in turn, ``n`` answers with seeds of their own.

    Raises:
        RequestError: (400) when the body asks for what no engine here does.
        PromptError: when it asks for a JSON schema that is too large.
    """
    body.refuse_unsupported()
    base = Generation(
        stop=body.stops,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=secrets.randbits(32) if body.seed is None else body.seed % (1 << 64),
        truncate=body.truncation == "auto",
    )
    if isinstance(body, ChatRequest):
        chat = replace(
            base,
            messages=[message.plain() for message in body.messages],
            new_tokens=body.new_tokens,
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            schema=body.response_format.schema_text() if body.response_format else None,
        )
        asked = [chat]
    else:
        tokens = body.max_tokens or 16
        asked = [replace(base, prompt=prompt, new_tokens=tokens, top_logprobs=body.logprobs) for prompt in body.prompts]
    return [replace(one, seed=(one.seed + number) % (1 << 64)) for one in asked for number in range(body.n or 1)]


async def answer_generation(
    request: Request, body: ChatRequest | CompletionRequest, pool: ModelPool, metrics: Metrics
) -> Response:
    """Answer a chat or a completion; everything it holds is given back however it ends."""
    asked, begun = read_generations(body), time.perf_counter()
    async with AsyncExitStack() as stack:
        opened = await while_connected(request, _open(stack, body, asked, pool, metrics))
        loaded, answer, choices = opened
        run = _Run(answer, choices, metrics, loaded.model, begun)
        headers = version_headers(loaded, answer.truncated)
        if body.stream:
            return EventStream(run.events(body.includes_usage), stack.pop_all(), headers)
        return JSONResponse(await while_connected(request, run.whole()), headers=headers)


def version_headers(loaded: Loaded, truncated: bool) -> dict[str, str]:
    """Which version answered, in place of which, and whether the input was cut."""
    answered, wanted = (quote(target.label, safe=" /@:+,") for target in (loaded.target, loaded.wanted))  # ASCII only
    headers = {"X-ACF-Version": answered}
    if loaded.fell_back:
        headers["X-ACF-Fallback"] = f"{wanted} -> {answered}; reason=memory"
    if truncated:
        headers["X-ACF-Truncated"] = "true"
    return headers


async def _open(
    stack: AsyncExitStack,
    body: ChatRequest | CompletionRequest,
    asked: list[Generation],
    pool: ModelPool,
    metrics: Metrics,
) -> tuple[Loaded, Answer, list[Pieces]]:
    """Lease the model and have the prompt of every choice accepted."""
    loaded = await stack.enter_async_context(pool.lease(body.model))
    choices: list[Pieces] = []
    prepared: list[Prepared] = []
    for one in asked:
        pieces = await stack.enter_async_context(aclosing(loaded.engine.generate(one)))
        first = await anext(pieces)
        assert isinstance(first, Prepared)
        prepared.append(first)
        choices.append(pieces)
    truncated = any(one.truncated for one in prepared)
    if truncated:
        metrics.truncated.labels(loaded.model).inc()
    answer = Answer(
        kind="chat" if isinstance(body, ChatRequest) else "text",
        model=body.model,
        fingerprint=loaded.target.label,
        prompt_tokens=sum(one.prompt_tokens for one in prepared[:: body.n or 1]),
        truncated=truncated,
        wants_logprobs=asked[0].top_logprobs is not None,
        with_usage=body.includes_usage,
    )
    return loaded, answer, choices


class _Run:
    """The choices of one answer while they are generated."""

    def __init__(self, answer: Answer, choices: list[Pieces], metrics: Metrics, model: str, begun: float) -> None:
        self._answer, self._choices, self._metrics = answer, choices, metrics
        self._model, self._begun = model, begun
        self._states = [ChoiceState() for _ in choices]

    async def whole(self) -> dict[str, Any]:
        """The body of the answer."""
        try:
            async with aclosing(self._deltas()) as deltas:
                async for index, delta in deltas:
                    self._states[index].add(delta)
        finally:
            self._count()
        return self._answer.whole(self._states)

    async def events(self, with_usage: bool) -> AsyncGenerator[dict[str, Any], None]:
        """The pieces of the answer."""
        try:
            for index in range(len(self._choices)):
                if (opening := self._answer.first(index)) is not None:
                    yield opening
            async with aclosing(self._deltas()) as deltas:
                async for index, delta in deltas:
                    state = self._states[index]
                    offset = len(state.text)
                    state.add(delta)
                    if delta.text or delta.finish or delta.logprobs:
                        yield self._answer.piece(index, delta, offset)
            if with_usage:
                yield self._answer.last(sum(state.tokens for state in self._states))
        finally:
            self._count()

    async def _deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Pieces of all choices as they come."""
        first = True
        source = self._one() if len(self._choices) == 1 else self._several()
        async with aclosing(source) as items:
            async for item in items:
                if first:
                    self._metrics.first_token.labels(self._model).observe(time.perf_counter() - self._begun)
                    first = False
                yield item

    async def _one(self) -> AsyncGenerator[tuple[int, Delta], None]:
        async for piece in self._choices[0]:
            if isinstance(piece, Delta):
                yield 0, piece

    async def _several(self) -> AsyncGenerator[tuple[int, Delta], None]:
        queue: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue()

        async def feed(index: int, pieces: Pieces) -> None:
            try:
                async for piece in pieces:
                    if isinstance(piece, Delta):
                        queue.put_nowait((index, piece))
            except Exception as error:
                queue.put_nowait((index, error))

        tasks = [asyncio.create_task(feed(index, pieces)) for index, pieces in enumerate(self._choices)]
        try:
            left = len(tasks)
            while left:
                index, item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                yield index, item
                left -= item.finish is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self) -> None:
        tokens = sum(state.tokens for state in self._states)
        self._metrics.count_tokens(self._model, self._answer.prompt_tokens, tokens)
