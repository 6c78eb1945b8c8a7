"""Model servers over real sockets for tests: one loop in a thread, one launcher of engines for all of them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from openai import OpenAI

from agentic_compression.serving.app import create_app
from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.launcher import Launcher
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.pool import ModelPool, PoolOptions
from agentic_compression.serving.security import read_proxies
from agentic_compression.serving.server import uvicorn_options
from agentic_compression.serving.sources import FolderSource, Source
from agentic_compression.settings import Settings

PATIENCE_S = 240.0


@dataclass
class Running:
    """A server that answers."""

    url: str
    pool: ModelPool
    call: Callable[[Coroutine[Any, Any, Any]], Any]
    """Runs a coroutine in the server's loop."""

    def client(self, key: str = "none", retries: int = 0) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, timeout=PATIENCE_S, max_retries=retries)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_S, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE_S, **options)

    def metric(self, name: str, **labels: str) -> float:
        """A sample's value, 0 when there is none."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = self.get("/metrics").text.splitlines()
        found = (line for line in lines if line.startswith((f"{name}{{", f"{name} ")))
        return sum(float(line.rpartition(" ")[2]) for line in found if all(label in line for label in wanted))

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not come about in time"
            time.sleep(0.05)


class Servers:
    """Starts servers in one loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="servers", daemon=True).start()
        self.launcher: Launcher = self.call(self._launch())

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    @property
    def launcher_pid(self) -> int:
        process = self.launcher._process
        assert process is not None
        return process.pid

    async def _launch(self) -> Launcher:
        launcher = Launcher(self._folder / "launcher.log")
        launcher.start()
        return launcher

    @contextmanager
    def running(
        self,
        models: dict[str, Path | Source],
        *,
        engine: EngineOptions | None = None,
        settings: dict[str, Any] | None = None,
        **limits: Any,
    ) -> Iterator[Running]:
        """A server of these models."""
        sources = {name: FolderSource(item) if isinstance(item, Path) else item for name, item in models.items()}
        options = PoolOptions(**{"logs": self._folder, "load_timeout_s": PATIENCE_S, **limits})
        metrics = Metrics()
        pool = ModelPool(sources, engine or EngineOptions(), options, metrics, self.launcher)
        chosen = Settings(_env_file=None, **(settings or {}))
        app = create_app(pool, metrics, chosen)
        listening = uvicorn_options(10, read_proxies(chosen.serve_trusted_proxies))
        server = uvicorn.Server(uvicorn.Config(app, **listening))
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            ending = asyncio.run_coroutine_threadsafe(server.serve([listener]), self.loop)
            try:
                while not server.started:
                    assert not ending.done(), ending.result()
                    time.sleep(0.01)
                yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", pool, self.call)
            finally:
                server.should_exit = True
                ending.result(PATIENCE_S)

    def close(self) -> None:
        async def end() -> None:
            self.launcher.close()

        self.call(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
