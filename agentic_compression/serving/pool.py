"""The models of one server: loaded when first asked for, unloaded when idle or crowded out, reloaded on demand."""

from __future__ import annotations

import asyncio
import difflib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agentic_compression.resident_memory import free_bytes
from agentic_compression.serving.engine import EngineBusyError, EngineOptions, LoadMemoryError
from agentic_compression.serving.errors import RequestError
from agentic_compression.serving.launcher import Launcher
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.process import ProcessEngine, start_engine
from agentic_compression.serving.sources import Source, Target

__all__ = ["Loaded", "ModelPool", "PoolOptions", "Served"]

_LOG = logging.getLogger("agentic_compression.serving")
_PROCESS_BYTES = 64_000_000
_WEIGHTS_FACTOR = 1.25
_POLL_S = 0.05


@dataclass(frozen=True)
class PoolOptions:
    """Limits of a pool.

    Attributes:
        max_models: loaded at once.
        memory_bytes: of all engines together; what the machine has free when None. Estimated before a model was ever
            loaded (a quarter more than its files and 64 MB), measured afterwards.
        idle_s: a model that nobody asked for so long is unloaded; 0 keeps it.
        load_timeout_s: for loading, and for waiting until another model may be unloaded.
        follow_s: between two looks at the registry.
        logs: folder for what engines print.
    """

    max_models: int = 4
    memory_bytes: int | None = None
    idle_s: float = 600.0
    load_timeout_s: float = 300.0
    follow_s: float = 10.0
    logs: Path = Path("logs")


@dataclass(eq=False)
class Loaded:
    """An engine in the pool. ``wanted`` is what was to be loaded; ``target`` differs from it after a fallback."""

    model: str
    engine: ProcessEngine
    target: Target
    wanted: Target
    bytes: int
    users: int = 0
    retired: bool = False
    last_used: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.time)

    @property
    def fell_back(self) -> bool:
        """Whether a smaller version than the one asked for runs."""
        return self.target != self.wanted


@dataclass(eq=False)
class Served:
    """One served name."""

    name: str
    source: Source
    created: int = field(default_factory=lambda: int(time.time()))
    loaded: Loaded | None = None
    loading: asyncio.Task[Loaded] | None = None
    problem: str | None = None
    """Why the last load or the last look at the registry failed."""


class ModelPool:
    """Owns the engines. All methods belong to one event loop.

    Args:
        sources: by served name.
        engine: options of every engine.
        options: limits.
        metrics: told of loads, unloads, fallbacks and swaps.
        launcher: of engines, shared with other pools of the same loop; one of its own when None.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        engine: EngineOptions,
        options: PoolOptions,
        metrics: Metrics,
        launcher: Launcher | None = None,
    ) -> None:
        self.models = {name: Served(name, source) for name, source in sources.items()}
        self.engine, self.options, self._metrics = engine, options, metrics
        self._launcher, self._owns_launcher = launcher or Launcher(options.logs / "serving.log"), launcher is None
        self._all: set[Loaded] = set()
        self._measured: dict[Path, int] = {}
        self._turn = asyncio.Lock()

    @property
    def loaded(self) -> list[Loaded]:
        """Engines that run, those that finish their last answers included."""
        return list(self._all)

    def start(self) -> None:
        """Begin to import what engines need."""
        self._launcher.start()

    def find(self, name: str) -> Served:
        """The model of that name.

        Raises:
            RequestError: (404) when there is none.
        """
        found = self.models.get(name)
        if found is None:
            close = difflib.get_close_matches(name, self.models, 3, 0.3) or list(self.models)[:3]
            raise RequestError(
                404,
                "model_not_found",
                f"model {name[:100]!r} is not served here; see /v1/models",
                param="model",
                suggestions=tuple(f"use {item}" for item in close),
            )
        return found

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Loaded]:
        """The model's engine, loaded if need be; it is not unloaded while leased.

        Raises:
            RequestError: (404) when there is no such model.
            AcfError: when it cannot be loaded.
        """
        served = self.find(name)
        loaded = await self._get(served)
        loaded.users += 1
        try:
            yield loaded
        finally:
            loaded.users -= 1
            loaded.last_used = time.monotonic()
            if loaded.users == 0 and loaded.retired:
                await asyncio.shield(self._close(loaded))

    async def unload(self, loaded: Loaded, reason: str) -> None:
        """Stop giving an engine to new requests, and close it when the last one has its answer."""
        served = self.models[loaded.model]
        if served.loaded is loaded:
            served.loaded = None
        if not loaded.retired:
            loaded.retired = True
            self._metrics.unloads.labels(loaded.model, reason).inc()
            _LOG.info("unloading %s (%s): %s", loaded.model, loaded.target.label, reason)
        if loaded.users == 0:
            await self._close(loaded)

    async def swap(self, served: Served, target: Target) -> None:
        """Replace the engine by one of another version, without a gap where both fit.

        Raises:
            AcfError: when the new version cannot be loaded, even in the old one's place; the old one then goes on.
        """
        old = served.loaded
        if old is None:
            return
        async with self._turn:
            try:
                new = await self._start(served, target, target, beside=True)
            except LoadMemoryError as error:
                await self._require_fit(target, old)
                _LOG.warning("%s: both versions do not fit, so requests wait meanwhile: %s", served.name, error)
                self._metrics.swaps.labels(served.name).inc()
                await self.unload(old, "moved")
                return
        current, served.loaded = served.loaded, new
        self._metrics.swaps.labels(served.name).inc()
        if current is not None:
            await self.unload(current, "moved")

    async def unload_idle(self) -> None:
        """Unload what nobody asked for during ``idle_s``."""
        for loaded in self.loaded:
            idle = time.monotonic() - loaded.last_used
            if loaded.users == 0 and not loaded.retired and 0 < self.options.idle_s <= idle:
                await self.unload(loaded, "idle")

    async def close(self) -> None:
        """Close every engine."""
        for served in self.models.values():
            if served.loading is not None:
                served.loading.cancel()
                await asyncio.gather(served.loading, return_exceptions=True)
        for loaded in self.loaded:
            await self._close(loaded)
        if self._owns_launcher:
            self._launcher.close()

    async def _get(self, served: Served) -> Loaded:
        while True:
            loaded = served.loaded
            if loaded is not None:
                if loaded.engine.alive:
                    return loaded
                await self.unload(loaded, "died")
            if served.loading is None:
                served.loading = asyncio.create_task(self._load(served))
                served.loading.add_done_callback(lambda task: self._loading_done(served, task))
            await asyncio.shield(served.loading)  # a client that leaves does not end what others wait for

    def _loading_done(self, served: Served, task: asyncio.Task[Loaded]) -> None:
        served.loading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            served.problem = str(error)[:500]

    async def _load(self, served: Served) -> Loaded:
        """What the source stands for, or the next smaller version for which there is memory."""
        async with self._turn:
            if served.loaded is not None:  # a swap came before
                return served.loaded
            wanted = await asyncio.to_thread(served.source.resolve)
            try:
                loaded = await self._start(served, wanted, wanted)
            except LoadMemoryError as error:
                loaded = await self._fall_back(served, wanted, error)
            served.loaded, served.problem = loaded, None
            return loaded

    async def _fall_back(self, served: Served, wanted: Target, error: LoadMemoryError) -> Loaded:
        for target in await asyncio.to_thread(served.source.smaller, wanted):
            try:
                loaded = await self._start(served, target, wanted)
            except LoadMemoryError:
                continue
            self._metrics.fallbacks.labels(served.name).inc()
            _LOG.warning("%s runs %s in place of %s: %s", served.name, target.label, wanted.label, error)
            return loaded
        raise error

    async def _start(self, served: Served, target: Target, wanted: Target, *, beside: bool = False) -> Loaded:
        begun, outcome = time.monotonic(), "failed"
        try:
            await self._make_room(await self._needed(target), beside)
            log = self.options.logs / "engines.log"
            engine = await start_engine(self._launcher, target.folder, self.engine, log, self.options.load_timeout_s)
            outcome = "loaded"
        except LoadMemoryError:
            outcome = "out_of_memory"
            raise
        finally:
            self._metrics.loads.labels(served.name, outcome).inc()
        self._metrics.load_seconds.labels(served.name).observe(time.monotonic() - begun)
        self._measured[target.folder] = size = max(engine.own_bytes(), 1)
        loaded = Loaded(served.name, engine, target, wanted, size)
        self._all.add(loaded)
        self._metrics.active_models.set(len(self._all))
        _LOG.info("loaded %s (%s) in %.1f s: %s", served.name, target.label, time.monotonic() - begun, engine.info)
        return loaded

    async def _needed(self, target: Target) -> int:
        """Bytes of an engine: as measured before, or estimated."""
        measured = self._measured.get(target.folder)
        return measured or int(_PROCESS_BYTES + _WEIGHTS_FACTOR * await asyncio.to_thread(target.weights_bytes))

    async def _require_fit(self, target: Target, old: Loaded) -> None:
        """That a version fits once the old one is gone, so that what works is not given up for nothing.

        Raises:
            LoadMemoryError: when it does not.
        """
        needed, room = await self._needed(target), free_bytes(self.engine.device) + old.bytes
        limit = self.options.memory_bytes
        room = room if limit is None else min(room, limit)
        if needed > room:
            raise LoadMemoryError(
                f"{target.label} must fit about {room / 1e6:.0f} MB in place of {old.target.label}, got about "
                f"{needed / 1e6:.0f} MB; {old.target.label} goes on"
            )

    async def _make_room(self, needed: int, beside: bool) -> None:
        """Unload idle models, the longest unused first, until there is room; wait for busy ones."""
        limit = self.options.memory_bytes
        if limit is not None and needed > limit:
            raise LoadMemoryError(
                f"a model must fit the memory allowed, {limit / 1e6:.0f} MB, got one of about {needed / 1e6:.0f} MB; "
                "raise ACF_SERVE_MEMORY_GB"
            )
        deadline = time.monotonic() + self.options.load_timeout_s
        while (lack := self._lack(needed, beside)) is not None:
            others = [item for item in self._all if not item.retired]
            idle = [item for item in others if item.users == 0]
            if beside and lack is LoadMemoryError:
                raise LoadMemoryError(f"two versions at once must fit the memory, got {needed / 1e6:.0f} MB more")
            if idle:
                await self.unload(min(idle, key=lambda item: item.last_used), "crowded out")
            elif not self._all:
                raise LoadMemoryError(f"the machine must have about {needed / 1e6:.0f} MB free, got less")
            elif time.monotonic() > deadline:
                raise lack("another model must become idle first, got only busy ones; send the request later")
            else:
                await asyncio.sleep(_POLL_S)

    def _lack(self, needed: int, beside: bool) -> type[LoadMemoryError | EngineBusyError] | None:
        """What is missing, in the shape of the error that it would be."""
        if len(self._all) >= self.options.max_models and not beside:
            return EngineBusyError
        limit = self.options.memory_bytes
        over = limit is not None and sum(item.bytes for item in self._all) + needed > limit
        return LoadMemoryError if over or needed > free_bytes(self.engine.device) else None

    async def _close(self, loaded: Loaded) -> None:
        await loaded.engine.close()
        self._all.discard(loaded)
        self._metrics.active_models.set(len(self._all))
