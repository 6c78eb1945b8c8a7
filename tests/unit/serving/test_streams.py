"""Streams end when nobody takes them, and give back what they hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from starlette.types import Message

from agentic_compression.serving import streams


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_client_that_stays_and_reads_nothing_is_given_up(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the head and so many pieces of three; then its connection is open and full."""
    monkeypatch.setattr(streams, "_SEND_S", 0.1)
    sent: list[Message] = []
    given_back: list[str] = []

    async def events() -> AsyncGenerator[dict[str, Any], None]:
        try:
            for number in range(3):
                yield {"number": number}
        finally:
            given_back.append("events")

    async def send(message: Message) -> None:
        if len(sent) == taken:
            await asyncio.Event().wait()
        sent.append(message)

    async def stay() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def work() -> dict[str, Any]:
        resources = AsyncExitStack()
        resources.callback(given_back.append, "lease")
        scope: dict[str, Any] = {"state": {"request_id": "r"}}
        async with asyncio.timeout(5):
            await streams.EventStream(events(), resources, {})(scope, stay, send)
        return dict(scope["state"])

    assert asyncio.run(work()) == {"request_id": "r", "client_gone": True}
    assert len(sent) == taken
    assert given_back == (["events", "lease"] if taken else ["lease"])  # a generator that never began has no end
