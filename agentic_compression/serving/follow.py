"""Work that goes on beside requests: unloading idle models, and following aliases that moved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from agentic_compression.errors import AcfError
from agentic_compression.serving.pool import ModelPool, Served

__all__ = ["follow_alias", "look_after"]

_LOG = logging.getLogger("agentic_compression.serving")


async def look_after(pool: ModelPool) -> None:
    """Follow aliases and unload idle models until cancelled."""
    idle = max(0.2, min(5.0, pool.options.idle_s / 4)) if pool.options.idle_s else 3600.0
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_repeat(pool.unload_idle, idle))
        for served in pool.models.values():  # each by itself: a swap may wait for minutes until there is room
            if served.source.follows:
                tasks.create_task(_repeat(partial(follow_alias, pool, served), pool.options.follow_s))


async def follow_alias(pool: ModelPool, served: Served) -> None:
    """Swap a loaded model whose alias points to another version than the one that was loaded for it.

    A version that failed to load is tried again only after its pause; an alias that moves on ends the pause.
    """
    if served.loaded is None and not served.backoff.failures:
        return
    try:
        target = await asyncio.to_thread(served.source.resolve)
        if served.backoff.failures and target != served.backoff.target:
            served.backoff.reset()
            served.problem = None
        loaded = served.loaded
        if loaded is None or served.backoff.wait_s:
            return
        if target != loaded.wanted:
            await pool.swap(served, target)
        served.problem = None
    except Exception as error:
        # What runs goes on: a registry that cannot be read is no reason to stop answering.
        expected = isinstance(error, AcfError)
        problem = (str(error) if expected else f"{type(error).__name__}: {error}")[:500]
        if served.problem != problem:
            _LOG.warning("%s stays as it is: %s", served.name, problem, exc_info=not expected)
        served.problem = problem


async def _repeat(work: Callable[[], Awaitable[None]], seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except Exception:  # a fault here must not end the server, nor go unseen
            _LOG.exception("looking after the models failed; trying again in %g s", seconds)
