"""Places and memory for engines: who waits for whom, what is unloaded, and what is not."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.serving.engine import EngineBusyError, LoadMemoryError
from agentic_compression.serving.room import Room

PIDS = itertools.count(1)


@dataclass(eq=False)
class Model:
    """Stands in for a loaded engine."""

    bytes: int
    users: int = 0
    retired: bool = False
    last_used: float = 0.0
    pid: int = field(default_factory=lambda: next(PIDS))


class Machine:
    """A device of so many bytes, with the engines on it; ``grown`` is what they took since they were loaded."""

    def __init__(self, total: int = 1000, places: int = 9, limit: int | None = None) -> None:
        self.total, self.models = total, list[Model]()
        self.unloaded: list[Model] = []
        self.grown: dict[int, int] = {}
        self.readers: list[int] = []
        self.room: Room[Model] = Room(places, limit, self, lambda: self.models, self.unload)

    def free(self) -> int:
        return self.total - sum(self._held(model.pid) for model in self.models)

    def used_by(self, pid: int) -> int | None:
        self.readers.append(threading.get_ident())
        return self._held(pid)

    def _held(self, pid: int) -> int:
        return sum(model.bytes + self.grown.get(pid, 0) for model in self.models if model.pid == pid)

    async def unload(self, model: Model) -> None:
        model.retired = True
        await asyncio.sleep(0)
        self.models.remove(model)
        self.unloaded.append(model)

    async def load(self, needed: int, *, seconds: float = 0.0, wait_s: float = 5.0, beside: bool = False) -> Model:
        async with self.room.reserve(needed, wait_s, beside=beside):
            await asyncio.sleep(seconds)
            model = Model(needed)
            self.models.append(model)
        return model

    def add(self, size: int, users: int = 0, last_used: float = 0.0) -> Model:
        self.models.append(Model(size, users, last_used=last_used))
        return self.models[-1]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_a_load_with_room_does_not_wait_behind_one_without() -> None:
    async def work() -> None:
        machine = Machine()
        busy = machine.add(500, users=1)
        large = asyncio.create_task(machine.load(800))
        await asyncio.sleep(0.1)
        small = await asyncio.wait_for(machine.load(100), 0.5)
        assert not large.done()
        small.users, busy.users = 0, 0
        await large
        assert machine.unloaded == [busy]  # the small one has nothing that is needed

    run(work())


def test_what_can_never_fit_unloads_nothing() -> None:
    async def work() -> None:
        machine = Machine()
        machine.add(300)
        machine.add(300, users=1)
        with pytest.raises(LoadMemoryError, match="without the models that are loaded"):
            await machine.load(1001)
        limited = Machine(limit=600)
        limited.add(300)
        with pytest.raises(LoadMemoryError, match="ACF_SERVE_MEMORY_GB"):
            await limited.load(601)
        assert machine.unloaded == limited.unloaded == []

    run(work())


def test_memory_that_an_engine_took_after_loading_counts_as_its_own() -> None:
    async def work() -> None:
        machine = Machine()
        idle = machine.add(100)
        machine.grown[idle.pid] = 700
        await machine.load(900)
        assert machine.unloaded == [idle]

    run(work())


def test_idle_engines_stay_while_their_memory_would_not_be_enough() -> None:
    async def work() -> None:
        machine = Machine()
        busy, idle = machine.add(700, users=1), machine.add(100)
        waiting = asyncio.create_task(machine.load(500))
        await asyncio.sleep(0.15)
        assert machine.unloaded == []
        busy.users = 0
        await waiting
        assert idle in machine.models or busy in machine.unloaded

    run(work())


def test_loads_under_way_count() -> None:
    async def work() -> None:
        machine = Machine(places=2)
        one, two, three = (asyncio.create_task(machine.load(300, seconds=0.3)) for _ in range(3))
        await asyncio.sleep(0.1)
        await asyncio.sleep(0.35)
        assert one.done()
        assert two.done()
        await three
        assert len(machine.models) == 2
        assert len(machine.unloaded) == 1
        full = Machine(total=500)
        first, second = (asyncio.create_task(full.load(300, seconds=0.2)) for _ in range(2))
        await asyncio.gather(first, second)
        assert full.unloaded == [first.result()]

    run(work())


def test_a_place_goes_to_who_waited_longest() -> None:
    async def work() -> None:
        machine = Machine(places=1)
        busy = machine.add(100, users=1)
        order: list[int] = []

        async def load(number: int) -> None:
            model = await machine.load(100)
            order.append(number)
            model.users = 1
            await asyncio.sleep(0.1)
            model.users = 0

        tasks = [asyncio.create_task(load(number)) for number in range(3)]
        await asyncio.sleep(0.1)
        busy.users = 0
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2]

    run(work())


def test_waiting_ends_with_an_answer() -> None:
    async def work() -> None:
        machine = Machine(places=1)
        machine.add(100, users=1)
        with pytest.raises(EngineBusyError, match="only busy ones"):
            await machine.load(100, wait_s=0.1)
        gone = asyncio.create_task(machine.load(100))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        machine.models[0].users = 0
        await asyncio.wait_for(machine.load(100), 1)  # who left does not hold up who comes

    run(work())


def test_a_version_beside_another_takes_no_place_and_unloads_nothing() -> None:
    async def work() -> None:
        machine = Machine(places=1)
        old = machine.add(400)
        other = await machine.load(500, beside=True)
        with pytest.raises(LoadMemoryError, match="two versions"):
            await machine.load(500, beside=True)
        other.users = 1
        assert machine.unloaded == []
        with pytest.raises(LoadMemoryError, match="goes on"):
            machine.room.require_fit(600, "version 2", old, "version 1")
        machine.room.require_fit(500, "version 2", old, "version 1")

    run(work())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 700), st.integers(0, 3), st.integers(0, 3)), max_size=12),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(300, 1000)),
)
def test_limits_hold_and_every_load_ends(loads: list[tuple[int, int, int]], places: int, limit: int | None) -> None:
    """Loads of any size at any moment, each used for a while: whatever fits alone gets its turn."""

    async def work() -> None:
        machine = Machine(places=places, limit=limit)

        async def one(size: int, delay: int, use: int) -> bool:
            await asyncio.sleep(delay / 500)
            try:
                model = await machine.load(size, seconds=0.001)
            except LoadMemoryError:
                return False
            model.users += 1
            assert len(machine.models) <= places
            assert sum(item.bytes for item in machine.models) <= min(machine.total, limit or machine.total)
            await asyncio.sleep(use / 500)
            model.users -= 1
            return True

        found = await asyncio.gather(*(one(*load) for load in loads))
        assert found == [size <= (limit or machine.total) for size, _, _ in loads]

    from agentic_compression.serving import room

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(room, "_POLL_S", 0.001)
        run(work())


def test_a_version_in_anothers_place_must_fit_beside_what_is_busy_or_under_way() -> None:
    async def work() -> None:
        machine = Machine(total=5000, limit=1000)
        old, idle = machine.add(300), machine.add(200)
        machine.room.require_fit(1000, "version 2", old, "version 1")
        idle.users = 1
        machine.room.require_fit(800, "version 2", old, "version 1")
        with pytest.raises(LoadMemoryError, match="goes on"):
            machine.room.require_fit(801, "version 2", old, "version 1")
        async with machine.room.reserve(100, 1, beside=True):
            machine.room.require_fit(700, "version 2", old, "version 1")
            with pytest.raises(LoadMemoryError, match="goes on"):
                machine.room.require_fit(701, "version 2", old, "version 1")
        unlimited = Machine(total=1000)
        old = unlimited.add(300)
        async with unlimited.room.reserve(400, 1):
            unlimited.room.require_fit(600, "version 2", old, "version 1")
            with pytest.raises(LoadMemoryError, match="goes on"):
                unlimited.room.require_fit(601, "version 2", old, "version 1")

    run(work())


def test_the_limit_counts_what_engines_took_after_loading() -> None:
    async def work() -> None:
        machine = Machine(total=5000, limit=1000)
        busy = machine.add(300, users=1)
        machine.grown[busy.pid] = 400
        with pytest.raises(LoadMemoryError, match="only busy ones"):
            await machine.load(400, wait_s=0.1)
        await machine.load(300)

    run(work())


def test_sizes_are_read_beside_the_loop_and_not_for_every_look() -> None:
    async def work() -> None:
        machine = Machine()
        machine.add(900, users=1)
        with pytest.raises(LoadMemoryError):
            await machine.load(200, wait_s=0.5)
        assert 1 <= len(machine.readers) <= 2
        assert threading.get_ident() not in machine.readers

    run(work())
