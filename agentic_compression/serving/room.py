"""Room for engines: places and memory, reserved by loads under way, made by unloading idle models or waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from agentic_compression.serving.device_memory import DeviceMemory
from agentic_compression.serving.engine import EngineBusyError, LoadMemoryError

__all__ = ["Occupant", "Room"]

_POLL_S = 0.05
_FRESH_S = 3.0


class Occupant(Protocol):
    """What takes room: bytes it took when it was loaded, requests that use it, and when it was used last."""

    bytes: int
    users: int
    retired: bool
    last_used: float

    @property
    def pid(self) -> int:
        """Its process."""
        ...


Engine = TypeVar("Engine", bound=Occupant)


class Room(Generic[Engine]):
    """Hands out places and memory. Its methods belong to one event loop.

    Loads that find room go ahead at once, several beside each other. Those that do not wait, and idle engines are
    unloaded for them, in the order they came. A later load passes an earlier one only with room, or idle engines, that
    are of no use to the earlier one yet.

    Args:
        places: engines at once.
        memory_bytes: of all engines together; what the device has free when None.
        memory: of the device.
        engines: those that run.
        unload: ends an idle engine.
    """

    def __init__(
        self,
        places: int,
        memory_bytes: int | None,
        memory: DeviceMemory,
        engines: Callable[[], Collection[Engine]],
        unload: Callable[[Engine], Awaitable[None]],
    ) -> None:
        self._places, self._limit, self._memory = places, memory_bytes, memory
        self._engines, self._unload = engines, unload
        self._reserved: dict[object, int] = {}
        self._waiting: dict[object, int] = {}
        self._sizes: dict[int, tuple[float, int]] = {}
        """By process: when it was looked at, and its bytes then."""
        self._looking = asyncio.Lock()

    @asynccontextmanager
    async def reserve(self, needed: int, timeout_s: float, *, beside: bool = False) -> AsyncIterator[None]:
        """Room for an engine of so many bytes, held until the engine is among those that run.

        Args:
            needed: bytes.
            timeout_s: for waiting until busy engines end.
            beside: it replaces one that runs: places do not count, and nothing is unloaded for it.

        Raises:
            LoadMemoryError: when it does not fit even if every engine ended, or not beside the others.
            EngineBusyError: when no place became free in time.
        """
        ticket = object()
        await self._wait(ticket, needed, timeout_s, beside)
        self._reserved[ticket] = needed
        try:
            yield
        finally:
            del self._reserved[ticket]

    def require_fit(self, needed: int, label: str, old: Engine, old_label: str) -> None:
        """That a version fits once the old one is gone, so that what works is not given up for nothing.

        Idle engines would be unloaded for it. Busy ones stay, and loads under way take what they reserved.

        Raises:
            LoadMemoryError: when it does not.
        """
        others, reserved = [item for item in self._engines() if item is not old], sum(self._reserved.values())
        room = self._memory.free() - reserved
        room += self.size(old) + sum(self.size(item) for item in others if item.users == 0)
        if self._limit is not None:
            room = min(room, self._limit - reserved - sum(self.size(item) for item in others if item.users))
        room = max(room, 0)
        if needed > room:
            raise LoadMemoryError(
                f"{label} must fit about {room / 1e6:.0f} MB in place of {old_label}, got about "
                f"{needed / 1e6:.0f} MB; {old_label} goes on"
            )

    async def look(self, engines: Collection[Engine]) -> None:
        """Read the sizes of these engines, in a thread: it takes seconds of a large one."""
        pids = [item.pid for item in engines]
        for pid, found in zip(pids, await asyncio.to_thread(self._read, pids), strict=True):
            known = self._sizes.get(pid, (0.0, 0))[1]
            self._sizes[pid] = time.monotonic(), known if found is None else found

    def size(self, engine: Engine) -> int:
        """Bytes of an engine when it was last looked at; it grows after loading."""
        return max(engine.bytes, self._sizes.get(engine.pid, (0.0, 0))[1])

    def _read(self, pids: list[int]) -> list[int | None]:
        return [self._memory.used_by(pid) for pid in pids]

    async def _look_again(self) -> None:
        """Read the sizes that were not read lately."""
        async with self._looking:
            engines, now = list(self._engines()), time.monotonic()
            self._sizes = {item.pid: self._sizes[item.pid] for item in engines if item.pid in self._sizes}
            old = [item for item in engines if now - self._sizes.get(item.pid, (-_FRESH_S, 0))[0] >= _FRESH_S]
            if old:
                await self.look(old)

    async def _wait(self, ticket: object, needed: int, timeout_s: float, beside: bool) -> None:
        deadline = time.monotonic() + timeout_s
        self._waiting[ticket] = needed
        try:
            await self._look_again()
            if not beside:
                self._require_possible(needed)
            while not self._may_go(ticket, beside):
                lack = self._lack(needed, beside)
                if beside and lack is LoadMemoryError and not self._reserved:
                    raise LoadMemoryError(f"two versions at once must fit the memory, got {needed / 1e6:.0f} MB more")
                if lack and not beside and self._may_unload(ticket) and (idle := self._to_unload(needed)) is not None:
                    await self._unload(idle)
                elif lack and not self._engines() and not self._reserved:
                    raise LoadMemoryError(f"the machine must have about {needed / 1e6:.0f} MB free, got less")
                elif time.monotonic() > deadline:
                    kind = lack or EngineBusyError
                    raise kind("another model must become idle first, got only busy ones; send the request later")
                else:
                    await asyncio.sleep(_POLL_S)
                    await self._look_again()
        finally:
            del self._waiting[ticket]

    def _may_go(self, ticket: object, beside: bool) -> bool:
        """Whether there is room, and not for the one that waits longest."""
        if self._lack(self._waiting[ticket], beside) is not None:
            return False
        first, first_needs = next(iter(self._waiting.items()))
        return first is ticket or beside or self._lack(first_needs, False) is not None

    def _may_unload(self, ticket: object) -> bool:
        """Whether idle engines are not to be left to the one that waits longest."""
        first, first_needs = next(iter(self._waiting.items()))
        return first is ticket or self._to_unload(first_needs) is None

    def _lack(self, needed: int, beside: bool) -> type[LoadMemoryError | EngineBusyError] | None:
        """What is missing, in the shape of the error that it would be.

        What loads under way will take counts in whole, so that a part of it counts twice until they are done.
        """
        engines, reserved = self._engines(), sum(self._reserved.values())
        if len(engines) + len(self._reserved) >= self._places and not beside:
            return EngineBusyError
        if self._limit is not None and sum(map(self.size, engines)) + reserved + needed > self._limit:
            return LoadMemoryError
        return LoadMemoryError if needed + reserved > self._memory.free() else None

    def _require_possible(self, needed: int) -> None:
        """That it would fit if every engine ended: nothing is unloaded for what never fits."""
        if self._limit is not None and needed > self._limit:
            raise LoadMemoryError(
                f"a model must fit the memory allowed, {self._limit / 1e6:.0f} MB, got one of about "
                f"{needed / 1e6:.0f} MB; raise ACF_SERVE_MEMORY_GB"
            )
        most = self._memory.free() + sum(map(self.size, self._engines())) + sum(self._reserved.values())
        if needed > most:
            raise LoadMemoryError(
                f"a model must fit the device, which has about {most / 1e6:.0f} MB without the models that are "
                f"loaded, got one of about {needed / 1e6:.0f} MB; free memory or use a smaller version"
            )

    def _to_unload(self, needed: int) -> Engine | None:
        """The idle engine unused for longest, unless all idle ones together are too little and busy ones may end."""
        engines = self._engines()
        idle = [item for item in engines if item.users == 0 and not item.retired]
        if not idle:
            return None
        busy, reserved = [item for item in engines if item not in idle], sum(self._reserved.values())
        if busy or reserved:
            if len(busy) + len(self._reserved) >= self._places:
                return None
            if self._limit is not None and sum(map(self.size, busy)) + reserved + needed > self._limit:
                return None
            if needed + reserved > self._memory.free() + sum(map(self.size, idle)):
                return None
        return min(idle, key=lambda item: item.last_used)
