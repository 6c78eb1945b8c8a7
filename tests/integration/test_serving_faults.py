"""What goes wrong in one place stays there: loads, engines, keys and clients that fail do not fail the others."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from mlflow import MlflowClient

from agentic_compression.serving.backoff import Backoff
from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.sources import RegistrySource
from tests.integration.serving_servers import PATIENCE_S, Running, Servers

COMPLETIONS = "/v1/completions"


def ask(server: Running, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": "Put 6 3 4 3 3 in order.", "max_tokens": 6, "temperature": 0, **more}
    return server.post(COMPLETIONS, json=body)


@contextmanager
def leased(server: Running, model: str) -> Iterator[None]:
    """Somebody uses the model."""
    done = asyncio.Event()

    async def hold(held: asyncio.Event) -> None:
        async with server.pool.lease(model):
            held.set()
            await done.wait()

    async def begin() -> asyncio.Task[None]:
        held = asyncio.Event()
        task = asyncio.create_task(hold(held))
        await held.wait()
        return task

    async def end(task: asyncio.Task[None]) -> None:
        done.set()
        await task

    task = server.call(begin())
    try:
        yield
    finally:
        server.call(end(task))


def broken_folder(folder: Path, weight_bytes: int = 100) -> Path:
    """No model, with a weight file of so many bytes, which take no room on the disk."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(weight_bytes)
    return folder


def test_a_load_with_room_does_not_wait_behind_one_that_needs_a_busy_model_to_end(
    servers: Servers, served_folders: dict[str, Path], tmp_path: Path
) -> None:
    """The large one must wait until the dense one is idle; the third fits beside it."""
    large = broken_folder(tmp_path / "large", 1_000_000_000)
    models: dict[str, Any] = {"dense": served_folders["dense"], "gguf": served_folders["gguf"], "large": large}
    with servers.running(models, memory_bytes=1_330_000_000) as server, httpx.Client(timeout=PATIENCE_S):
        with leased(server, "dense"):
            waiting = asyncio.run_coroutine_threadsafe(server.pool.lease("large").__aenter__(), servers.loop)
            server.wait_until(lambda: server.pool.models["large"].loading is not None)
            time.sleep(0.3)
            begun = time.monotonic()
            assert ask(server, "gguf").status_code == 200
            assert time.monotonic() - begun < 30
            assert not waiting.done()
        assert waiting.exception(PATIENCE_S) is not None  # it is no model, which its load says once it has its turn
        assert server.metric("acf_serve_unloads_total", model="dense", reason="crowded out") == 1


def test_a_load_that_fails_is_not_tried_for_every_request(
    servers: Servers, served_folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = broken_folder(tmp_path / "broken")
    with servers.running({"model": folder}) as server:
        first = ask(server, "model")
        again = [ask(server, "model") for _ in range(5)]
        for response in (first, *again):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "model_unavailable"
            assert response.headers["retry-after"] == "1"
        assert server.metric("acf_serve_loads_total", model="model") == 1
        time.sleep(1.1)
        assert ask(server, "model").headers["retry-after"] == "2"
        assert server.metric("acf_serve_loads_total", model="model") == 2
        state = server.get("/health/detailed").json()["models"]["model"]
        assert 0 < state["retry_in_s"] <= 2
        assert state["problem"]
        shutil.rmtree(folder)
        shutil.copytree(served_folders["dense"], folder)
        server.wait_until(lambda: ask(server, "model").status_code == 200, 10)
        assert server.get("/health/detailed").json()["models"]["model"]["retry_in_s"] == 0


def test_an_alias_that_moves_ends_the_pause(
    servers: Servers,
    mlflow_store: tuple[MlflowClient, Path],
    served_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    client, name = mlflow_store[0], "served-moved-on"
    client.create_registered_model(name)
    for folder in (broken_folder(tmp_path / "broken"), served_folders["dense"]):
        client.create_model_version(name, source=folder.as_uri(), tags={"acf.key": folder.name})
    client.set_registered_model_alias(name, "champion", "1")
    source = RegistrySource(client, f"models:/{name}@champion")
    with servers.running({"model": source}, follow_s=0.2) as server:
        server.pool.models["model"].backoff = Backoff(lambda: 0.0)  # a clock that stands still: no pause ends by itself
        assert ask(server, "model").status_code == 503
        time.sleep(0.6)
        assert ask(server, "model").status_code == 503
        assert server.metric("acf_serve_loads_total", model="model") == 1
        client.set_registered_model_alias(name, "champion", "2")
        server.wait_until(lambda: ask(server, "model").status_code == 200, 20)
        client.set_registered_model_alias(name, "champion", "1")  # the running version goes on, the other is held off
        server.wait_until(lambda: server.pool.models["model"].backoff.failures == 1, 20)
        time.sleep(0.6)
        answer = ask(server, "model")
        assert (answer.status_code, answer.headers["x-acf-version"]) == (200, "version 2")
        assert server.metric("acf_serve_loads_total", model="model", outcome="failed") == 2
        assert server.get("/health/detailed").json()["status"] == "degraded"
    client.delete_registered_model(name)


def test_what_can_never_fit_costs_no_idle_model(
    servers: Servers, served_folders: dict[str, Path], tmp_path: Path
) -> None:
    total = psutil.virtual_memory().total
    models: dict[str, Any] = {"dense": served_folders["dense"], "large": broken_folder(tmp_path / "large", total)}
    with servers.running(models) as server:
        assert ask(server, "dense").status_code == 200
        refused = ask(server, "large")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "out_of_memory")
        assert server.metric("acf_serve_unloads_total", model="dense") == 0
        assert server.metric("acf_serve_active_models") == 1


@pytest.mark.parametrize("streamed", [True, False])
def test_a_broken_answer_counts_as_an_error_and_a_left_one_as_cancelled(
    streamed: bool, servers: Servers, endless_folders: dict[str, Path]
) -> None:
    def counted(outcome: str) -> float:
        return server.metric("acf_serve_requests_total", route=COMPLETIONS, outcome=outcome)

    with servers.running({"dense": endless_folders["dense"]}) as server, httpx.Client(timeout=PATIENCE_S) as client:
        body = {"model": "dense", "prompt": "Once", "max_tokens": 480, "temperature": 0, "n": 8, "stream": streamed}
        assert ask(server, "dense").status_code == 200
        loaded = server.pool.models["dense"].loaded
        assert loaded is not None
        with (
            pytest.raises(httpx.ReadTimeout)
            if not streamed
            else client.stream("POST", server.url + COMPLETIONS, json=body) as response
        ):
            if streamed:
                lines = response.iter_lines()  # kept: httpx hangs up when its iterator is dropped
                next(lines)
            else:
                client.post(server.url + COMPLETIONS, json=body, timeout=0.3)
        server.wait_until(lambda: counted("cancelled") == 1)
        assert (counted("2xx"), counted("error"), counted("5xx")) == (1, 0, 0)
        if not streamed:
            return
        with client.stream("POST", server.url + COMPLETIONS, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(loaded.pid, signal.SIGKILL)
            assert '"error":' in [line for line in lines if line][-1]
        server.wait_until(lambda: counted("error") == 1)
        assert (counted("2xx"), counted("cancelled")) == (1, 1)


def test_a_client_that_leaves_while_it_sends_is_cancelled(server: Running) -> None:
    before = server.metric("acf_serve_requests_total", route=COMPLETIONS, outcome="cancelled")
    refused = server.metric("acf_serve_requests_total", route=COMPLETIONS, outcome="4xx")

    async def leave() -> None:
        host, port = server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    asyncio.run(leave())
    server.wait_until(
        lambda: server.metric("acf_serve_requests_total", route=COMPLETIONS, outcome="cancelled") == before + 1, 10
    )
    assert server.metric("acf_serve_requests_total", route=COMPLETIONS, outcome="4xx") == refused


KEY = "k" * 24


def bearer(key: str, address: str | None = None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **({"X-Forwarded-For": address} if address else {})}


def test_wrong_keys_are_limited_for_each_address(servers: Servers, served_folders: dict[str, Path]) -> None:
    settings = {
        "ACF_SERVE_API_KEYS": KEY,
        "ACF_SERVE_FAILURES_PER_MINUTE": 3,
        "ACF_SERVE_TRUSTED_PROXIES": "127.0.0.1",
    }

    def status(key: str, address: str) -> int:
        return server.get("/v1/models", headers=bearer(key, address)).status_code

    with servers.running({"dense": served_folders["dense"]}, settings=settings) as server:
        assert [status("guess", "192.0.2.1") for _ in range(5)] == [401, 401, 401, 429, 429]
        refused = server.get("/v1/models", headers=bearer(KEY, "192.0.2.1"))
        assert refused.status_code == 429  # or who guesses right would know
        assert 0 < int(refused.headers["retry-after"]) <= 20
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert status(KEY, "192.0.2.2") == 200
        # What a client itself put into the header stands left of what the proxy added, and is not believed.
        assert status("guess", "192.0.2.7, 192.0.2.1") == 429
        assert [status("guess", f"2001:db8::{number}") for number in range(1, 5)] == [401, 401, 401, 429]
        assert status(KEY, "2001:db8:0:1::1") == 200
        assert server.get("/health", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 200


def test_a_header_from_no_trusted_proxy_changes_nothing(servers: Servers, served_folders: dict[str, Path]) -> None:
    settings = {"ACF_SERVE_API_KEYS": KEY, "ACF_SERVE_FAILURES_PER_MINUTE": 2}
    with servers.running({"dense": served_folders["dense"]}, settings=settings) as server:
        found = [
            server.get("/v1/models", headers=bearer("guess", f"192.0.2.{number}")).status_code for number in range(4)
        ]
        assert found == [401, 401, 429, 429]


def test_an_engine_that_lacks_memory_for_a_step_goes_on(servers: Servers, endless_folders: dict[str, Path]) -> None:
    """The cache must grow for a long prompt in many slots and may not: those requests fail, the engine answers on."""
    options = EngineOptions(slots=32)
    with servers.running({"dense": endless_folders["dense"]}, engine=options) as server:
        expected = ask(server, "dense", max_tokens=4).json()["choices"][0]["text"]
        loaded = server.pool.models["dense"].loaded
        assert loaded is not None
        process, writable = psutil.Process(loaded.pid), Path(f"/proc/{loaded.pid}/status").read_text()
        (held,) = (int(line.split()[1]) * 1024 for line in writable.splitlines() if line.startswith("VmData:"))
        limits = process.rlimit(resource.RLIMIT_DATA)
        process.rlimit(resource.RLIMIT_DATA, (held + (1 << 20), limits[1]))
        bodies = [
            {"model": "dense", "prompt": f"{number} " * 100, "max_tokens": 24, "temperature": 0, "n": 8}
            for number in range(4)
        ]

        async def ask_all() -> list[httpx.Response]:
            async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
                return await asyncio.gather(*(client.post(server.url + COMPLETIONS, json=body) for body in bodies))

        failed = asyncio.run(ask_all())
        if process.is_running():
            process.rlimit(resource.RLIMIT_DATA, limits)
        statuses = {response.status_code for response in failed}
        assert statuses & {500, 503}, "nothing lacked memory"
        assert statuses <= {200, 500, 503}
        after = [ask(server, "dense", max_tokens=4) for _ in range(3)]
        assert [answer.json()["choices"][0]["text"] for answer in after] == [expected] * 3
        server.wait_until(lambda: server.metric("acf_serve_running_requests", model="dense") == 0)
        again = asyncio.run(ask_all())
        assert {response.status_code for response in again} == {200}
        alone = [server.post(COMPLETIONS, json=body).json()["choices"] for body in bodies[:2]]
        assert [response.json()["choices"] for response in again[:2]] == alone


def test_a_launcher_that_is_killed_costs_no_request(servers: Servers, served_folders: dict[str, Path]) -> None:
    """Engines go on without it, can be closed, and the next load starts another."""
    models: dict[str, Any] = {name: served_folders[name] for name in ("dense", "gguf")}
    with servers.running(models, max_models=1) as server:
        assert ask(server, "dense").status_code == 200
        loaded = server.pool.models["dense"].loaded
        assert loaded is not None
        os.kill(servers.launcher_pid, signal.SIGKILL)
        assert ask(server, "dense").status_code == 200
        assert server.pool.models["dense"].loaded is loaded
        assert ask(server, "gguf").status_code == 200  # takes the place of the engine that no launcher knows
        server.wait_until(lambda: not psutil.pid_exists(loaded.pid), 20)
