"""Engines of the pool are never lost, whatever fails or leaves while they start and end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentic_compression.serving import pool as pool_module
from agentic_compression.serving.engine import EngineInfo, EngineOptions
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.pool import ModelPool, PoolOptions
from agentic_compression.serving.sources import FolderSource


class Engine:
    """Stands in for an engine's process."""

    broken = False

    def __init__(self, pid: int) -> None:
        self.info = EngineInfo("transformers", "cpu", 64, 100, 4, True, "default", pid)
        self.alive, self.closed = True, False
        self.closing, self.may_close = asyncio.Event(), asyncio.Event()
        self.may_close.set()

    async def close(self) -> None:
        self.closing.set()
        await self.may_close.wait()
        self.alive, self.closed = False, True


class Memory:
    """Of a device of a gigabyte whose processes have ``used``."""

    def __init__(self) -> None:
        self.used: int | Exception = 10_000_000

    def free(self) -> int:
        return 1_000_000_000

    def total(self) -> int:
        return 2_000_000_000

    def used_by(self, pid: int) -> int | None:
        if isinstance(self.used, Exception):
            raise self.used
        return self.used


class Bench:
    """A pool of one model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        self.engines: list[Engine] = []
        self.memory = Memory()
        launcher: Any = SimpleNamespace(close=lambda: None)
        options = PoolOptions(max_models=1, load_timeout_s=1)
        sources = {"model": FolderSource(folder)}
        self.pool = ModelPool(sources, EngineOptions(), options, Metrics(), launcher, self.memory)
        monkeypatch.setattr(pool_module, "start_engine", self._start)

    async def _start(self, *_: Any) -> Engine:
        self.engines.append(Engine(len(self.engines) + 1))
        return self.engines[-1]

    async def use(self) -> None:
        async with self.pool.lease("model"):
            pass


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_client_that_leaves_while_a_broken_engine_ends_costs_no_place(bench: Bench) -> None:
    async def work() -> None:
        await bench.use()
        (first,) = bench.engines
        first.broken = True
        first.may_close.clear()
        client = asyncio.create_task(bench.use())
        await first.closing.wait()
        client.cancel()
        await asyncio.gather(client, return_exceptions=True)
        first.may_close.set()
        await bench.use()
        assert [engine.closed for engine in bench.engines] == [True, False]

    asyncio.run(asyncio.wait_for(work(), 10))


def test_an_engine_whose_size_cannot_be_read_is_closed(bench: Bench) -> None:
    async def work() -> None:
        bench.memory.used = RuntimeError("not supported")
        with pytest.raises(RuntimeError, match="not supported"):
            await bench.use()
        assert [engine.closed for engine in bench.engines] == [True]
        assert bench.pool.loaded == []

    asyncio.run(asyncio.wait_for(work(), 10))


def test_the_largest_size_of_an_engine_is_remembered(bench: Bench) -> None:
    async def work() -> None:
        await bench.use()
        bench.memory.used = 70_000_000
        await bench.pool.unload(bench.pool.loaded[0], "idle")
        bench.memory.used = 20_000_000
        await bench.use()
        target = bench.pool.models["model"].source.resolve()
        assert await bench.pool._needed(target) == 70_000_000

    asyncio.run(asyncio.wait_for(work(), 10))


def test_what_was_loaded_is_logged_in_words(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        asyncio.run(asyncio.wait_for(bench.use(), 10))
    (line,) = [record.getMessage() for record in caplog.records if "loaded model" in record.getMessage()]
    assert line.endswith("s: transformers on cpu, 4 slots, process 1")


def test_vllm_is_given_its_share_of_the_device(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    options = EngineOptions(engine="vllm", gpu_share=0.25, device="cuda:0")
    launcher: Any = SimpleNamespace(close=lambda: None)
    pool = ModelPool({"model": FolderSource(tmp_path)}, options, PoolOptions(), Metrics(), launcher, Memory())
    target = pool.models["model"].source.resolve()
    assert asyncio.run(pool._needed(target)) == 500_000_000
