"""The server's side of an engine, with a scripted engine at the other end of its socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentic_compression.errors import CompressionError
from agentic_compression.serving.engine import Delta, EngineBusyError, EngineDiedError, EngineInfo, Generation, Prepared
from agentic_compression.serving.launcher import Launcher
from agentic_compression.serving.process import ProcessEngine

INFO = EngineInfo("scripted", "cpu", 64, 1, 1, True, "default", 2**22 + 1)
PREPARED = {"op": "prepared", "prompt_tokens": 3, "truncated": False, "new_tokens": 8}


def step(*events: dict[str, Any]) -> dict[str, Any]:
    return {"op": "step", "events": list(events), "running": 1, "waiting": 0}


def token(key: int, finish: str | None = None) -> dict[str, Any]:
    return {"id": key, "text": "a", "finish": finish}


def failure(key: int, kind: str = "engine") -> dict[str, Any]:
    return {"id": key, "error": kind, "message": "RuntimeError: no"}


Tell = Callable[[dict[str, Any]], Awaitable[None]]


def run(work: Callable[[ProcessEngine, Tell, asyncio.StreamWriter], Awaitable[None]], folder: Path) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        _, engine_side = await asyncio.open_connection(sock=theirs)
        engine = ProcessEngine(Launcher(folder / "log"), reader, writer, INFO)

        async def tell(message: dict[str, Any]) -> None:
            engine_side.write(json.dumps(message).encode() + b"\n")
            await asyncio.sleep(0.01)

        await work(engine, tell, engine_side)
        await engine.close()
        engine_side.close()

    asyncio.run(asyncio.wait_for(main(), 10))


async def answer(engine: ProcessEngine) -> str:
    pieces = [piece async for piece in engine.generate(Generation(prompt="a"))]
    assert isinstance(pieces[0], Prepared)
    return "".join(piece.text for piece in pieces if isinstance(piece, Delta))


def test_a_failed_step_fails_its_requests_only(tmp_path: Path) -> None:
    async def work(engine: ProcessEngine, tell: Tell, _: asyncio.StreamWriter) -> None:
        tasks = [asyncio.create_task(answer(engine)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for key in range(3):
            await tell({**PREPARED, "id": key})
        await tell(step(token(0), failure(1), failure(2, "memory")))
        await tell(step(token(0, "stop")))
        assert await tasks[0] == "aa"
        with pytest.raises(CompressionError, match="RuntimeError: no"):
            await tasks[1]
        with pytest.raises(EngineBusyError):
            await tasks[2]
        assert engine.alive
        assert not engine.broken
        assert engine.requests == 0

    run(work, tmp_path)


def test_an_engine_whose_steps_all_fail_is_broken(tmp_path: Path) -> None:
    async def work(engine: ProcessEngine, tell: Tell, _: asyncio.StreamWriter) -> None:
        for kind in ("engine", "memory"):
            await tell(step(failure(9, kind)))
        await tell(step(token(9)))
        for _ in range(2):
            await tell(step(failure(9)))
        await tell(step())  # nothing is said of a step that only read a prompt
        assert not engine.broken
        await tell(step(failure(9, "prompt")))
        await tell({"op": "error", "id": 9, "kind": "engine", "message": "a tokenizer's"})
        assert not engine.broken
        for _ in range(3):
            await tell(step(failure(9)))
        assert engine.broken

    run(work, tmp_path)


def test_an_engine_that_writes_nonsense_has_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(engine: ProcessEngine, tell: Tell, engine_side: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(answer(engine))
        await asyncio.sleep(0.01)
        await tell({**PREPARED, "id": 0})
        engine_side.write(b"no message\n")
        with pytest.raises(EngineDiedError, match="send the request again"):
            await task
        assert not engine.alive
        with pytest.raises(EngineDiedError):
            await answer(engine)

    run(work, tmp_path)
    assert "cannot be read" in caplog.text
