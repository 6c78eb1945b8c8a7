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

from agentic_compression.errors import AcfError
from agentic_compression.serving.backoff import Backoff
from agentic_compression.serving.device_memory import DeviceMemory, open_memory
from agentic_compression.serving.engine import EngineBusyError, EngineOptions, LoadMemoryError
from agentic_compression.serving.errors import RequestError
from agentic_compression.serving.launcher import Launcher
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.process import ProcessEngine, start_engine
from agentic_compression.serving.room import Room
from agentic_compression.serving.sources import Source, Target

__all__ = ["Loaded", "ModelPool", "PoolOptions", "Served"]

_LOG = logging.getLogger("agentic_compression.serving")
_PROCESS_BYTES = 64_000_000
_GPU_CONTEXT_BYTES = 500_000_000
_WEIGHTS_FACTOR = 1.25


@dataclass(frozen=True)
class PoolOptions:
    """Limits of a pool.

    Attributes:
        max_models: loaded at once.
        memory_bytes: of all engines together, on the device they run on; what it has free when None. Estimated before
            a model was ever loaded (a quarter more than its files and 64 MB, on a GPU 500 MB), measured afterwards.
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
    def pid(self) -> int:
        """The engine's process."""
        return self.engine.info.pid

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
    backoff: Backoff = field(default_factory=Backoff)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while an engine of this model is loaded, for a request or in place of another version."""


class ModelPool:
    """Owns the engines. All methods belong to one event loop.

    Args:
        sources: by served name.
        engine: options of every engine.
        options: limits.
        metrics: told of loads, unloads, fallbacks and swaps.
        launcher: of engines, shared with other pools of the same loop; one of its own when None.
        memory: of the engines' device; opened by its name when None.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        engine: EngineOptions,
        options: PoolOptions,
        metrics: Metrics,
        launcher: Launcher | None = None,
        memory: DeviceMemory | None = None,
    ) -> None:
        self.models = {name: Served(name, source) for name, source in sources.items()}
        self.engine, self.options, self._metrics = engine, options, metrics
        self._launcher, self._owns_launcher = launcher or Launcher(options.logs / "serving.log"), launcher is None
        self._all: set[Loaded] = set()
        self._measured: dict[Path, int] = {}
        self._memory = memory or open_memory(engine.device)
        self._room: Room[Loaded] = Room(
            options.max_models,
            options.memory_bytes,
            self._memory,
            lambda: self._all,
            lambda loaded: self.unload(loaded, "crowded out"),
        )

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
            await asyncio.shield(self._close(loaded))  # the client that found it broken may hang up meanwhile

    async def swap(self, served: Served, target: Target) -> None:
        """Replace the engine by one of another version, without a gap where both fit.

        Raises:
            AcfError: when the new version cannot be loaded, even in the old one's place; the old one then goes on.
        """
        async with served.turn:
            try:
                await self._swap(served, target)
            except Exception as error:
                served.backoff.failed(target, error)
                raise

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
                if loaded.engine.alive and not loaded.engine.broken:
                    return loaded
                await self.unload(loaded, "broken" if loaded.engine.alive else "died")
            if served.loading is None:
                served.backoff.check()
                served.loading = asyncio.create_task(self._load(served))
                served.loading.add_done_callback(lambda task: self._loading_done(served, task))
            try:
                await asyncio.shield(served.loading)  # a client that leaves does not end what others wait for
            except AcfError:
                served.backoff.check()  # says when it is tried again
                raise

    def _loading_done(self, served: Served, task: asyncio.Task[Loaded]) -> None:
        served.loading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            served.problem = str(error)[:500]

    async def _load(self, served: Served) -> Loaded:
        """What the source stands for, or the next smaller version for which there is memory."""
        wanted: Target | None = None
        async with served.turn:
            if served.loaded is not None:  # a swap came before
                return served.loaded
            try:
                wanted = await asyncio.to_thread(served.source.resolve)
                loaded = await self._start_or_fall_back(served, wanted)
            except Exception as error:
                if not isinstance(error, EngineBusyError):  # the others are busy, and nothing is wrong with this one
                    served.backoff.failed(wanted, error)
                raise
            served.loaded, served.problem = loaded, None
            served.backoff.reset()
            return loaded

    async def _start_or_fall_back(self, served: Served, wanted: Target) -> Loaded:
        try:
            return await self._start(served, wanted, wanted)
        except LoadMemoryError as error:
            return await self._fall_back(served, wanted, error)

    async def _swap(self, served: Served, target: Target) -> None:
        old = served.loaded
        if old is None:
            return
        try:
            served.loaded = await self._start(served, target, target, beside=True)
            served.backoff.reset()
        except LoadMemoryError as error:
            self._room.require_fit(await self._needed(target), target.label, old, old.target.label)
            _LOG.warning("%s: both versions do not fit, so requests wait meanwhile: %s", served.name, error)
        self._metrics.swaps.labels(served.name).inc()
        if not old.retired:  # it may have ended while the other was loaded
            await self.unload(old, "moved")

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
            needed = await self._needed(target)
            async with self._room.reserve(needed, self.options.load_timeout_s, beside=beside):
                log = self.options.logs / "engines.log"
                engine = await start_engine(
                    self._launcher, target.folder, self.engine, log, self.options.load_timeout_s
                )
                try:
                    size = await asyncio.to_thread(self._memory.used_by, engine.info.pid) or needed
                except BaseException:  # nobody else knows the engine yet
                    await engine.close()
                    raise
                self._measured[target.folder] = max(size, self._measured.get(target.folder, 0))
                loaded = Loaded(served.name, engine, target, wanted, size)
                self._all.add(loaded)
            outcome = "loaded"
        except LoadMemoryError:
            outcome = "out_of_memory"
            raise
        except EngineBusyError:
            outcome = "no_room"
            raise
        finally:
            self._metrics.loads.labels(served.name, outcome).inc()
        self._metrics.load_seconds.labels(served.name).observe(time.monotonic() - begun)
        self._metrics.active_models.set(len(self._all))
        told = f"{engine.info.engine} on {engine.info.device}, {engine.info.slots} slots, process {engine.info.pid}"
        _LOG.info("loaded %s (%s) in %.1f s: %s", served.name, target.label, time.monotonic() - begun, told)
        return loaded

    async def _needed(self, target: Target) -> int:
        """Bytes of an engine: the most that were measured before, or estimated. vLLM takes a share of the device."""
        measured = self._measured.get(target.folder)
        if self.engine.engine == "vllm":
            return max(measured or 0, int(self.engine.gpu_share * self._memory.total()))
        beside = _GPU_CONTEXT_BYTES if self.engine.device.startswith("cuda") else _PROCESS_BYTES
        return measured or int(beside + _WEIGHTS_FACTOR * await asyncio.to_thread(target.weights_bytes))

    async def _close(self, loaded: Loaded) -> None:
        await self._room.look([loaded])  # its caches have grown, and the next one's will
        folder = loaded.target.folder
        self._measured[folder] = max(self._room.size(loaded), self._measured.get(folder, 0))
        await loaded.engine.close()
        self._all.discard(loaded)
        self._metrics.active_models.set(len(self._all))
