"""Following aliases: what one model's registry does is nothing to the others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentic_compression.errors import ModelError
from agentic_compression.serving.backoff import Backoff
from agentic_compression.serving.follow import look_after
from agentic_compression.serving.pool import PoolOptions
from agentic_compression.serving.sources import Target

ONE, TWO = Target(Path("one"), "1"), Target(Path("two"), "2")


class Source:
    """An alias that moved to version 2, or a registry that fails."""

    follows = True

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def resolve(self) -> Target:
        if self._error is not None:
            raise self._error
        return TWO


class Pool:
    """Stands in for the models of a server."""

    def __init__(self, waits: str = "", **sources: Source) -> None:
        self.options = PoolOptions(follow_s=0.01, idle_s=0)
        self.models: dict[str, Any] = {
            name: SimpleNamespace(
                name=name, source=source, problem=None, backoff=Backoff(), loaded=SimpleNamespace(wanted=ONE)
            )
            for name, source in sources.items()
        }
        self._waits = waits
        self.swapped: list[str] = []

    async def unload_idle(self) -> None: ...

    async def swap(self, served: Any, target: Target) -> None:
        if served.name == self._waits:
            await asyncio.Event().wait()
        served.loaded = SimpleNamespace(wanted=target)
        self.swapped.append(served.name)

    async def run(self) -> None:
        task = asyncio.create_task(look_after(self))  # type: ignore[arg-type]
        await asyncio.sleep(0.3)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("no number"), ModelError("no alias")])
def test_a_source_that_fails_in_any_way_holds_up_no_other(error: Exception) -> None:
    pool = Pool(first=Source(error), second=Source())
    asyncio.run(pool.run())
    assert pool.swapped == ["second"]
    assert str(error) in pool.models["first"].problem
    assert pool.models["second"].problem is None


def test_a_swap_that_waits_for_room_holds_up_no_other() -> None:
    pool = Pool(waits="first", first=Source(), second=Source())
    asyncio.run(pool.run())
    assert pool.swapped == ["second"]
