"""The server's models: loaded on demand, crowded out, idle, too large, killed, and following their alias."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from mlflow import MlflowClient

from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.sources import RegistrySource
from tests.integration.serving_servers import PATIENCE_S, Running, Servers

QUESTION: list[Any] = [{"role": "user", "content": "Put 6 3 4 3 3 in order."}]


def ask(server: Running, model: str) -> httpx.Response:
    body = {"model": model, "messages": QUESTION, "temperature": 0}
    response = server.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"].strip() == "33346"
    return response


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pid_of(server: Running, model: str) -> int:
    loaded = server.pool.models[model].loaded
    assert loaded is not None
    return loaded.engine.info.pid


def test_models_load_when_asked_for_and_the_longest_unused_makes_room(
    servers: Servers, served_folders: dict[str, Path]
) -> None:
    with servers.running(dict(served_folders), max_models=2) as server:
        assert server.pool.loaded == []
        ask(server, "dense")
        ask(server, "packed")
        ask(server, "dense")
        dense, packed = pid_of(server, "dense"), pid_of(server, "packed")
        ask(server, "gguf")
        assert server.pool.models["packed"].loaded is None
        assert pid_of(server, "dense") == dense
        server.wait_until(lambda: not alive(packed))
        assert server.metric("acf_serve_active_models") == 2
        assert server.metric("acf_serve_unloads_total", model="packed", reason="crowded out") == 1
        ask(server, "packed")
        assert server.metric("acf_serve_loads_total", model="packed", outcome="loaded") == 2
    assert not alive(dense)


def test_an_idle_model_unloads_and_comes_back(servers: Servers, served_folders: dict[str, Path]) -> None:
    with servers.running({"gguf": served_folders["gguf"]}, idle_s=1.0) as server:
        ask(server, "gguf")
        first = pid_of(server, "gguf")
        server.wait_until(lambda: not alive(first))
        assert server.get("/health/detailed").json()["models"]["gguf"]["state"] == "unloaded"
        ask(server, "gguf")
        assert server.metric("acf_serve_unloads_total", model="gguf", reason="idle") >= 1


def test_requests_at_once_load_a_model_once(servers: Servers, served_folders: dict[str, Path]) -> None:
    with servers.running({"gguf": served_folders["gguf"]}) as server:
        threads = [threading.Thread(target=ask, args=(server, "gguf")) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.metric("acf_serve_loads_total", model="gguf") == 1
        assert server.metric("acf_serve_requests_total", route="/v1/chat/completions", outcome="2xx") == 6


def test_a_killed_engine_fails_its_request_and_is_started_again(
    servers: Servers, endless_folders: dict[str, Path]
) -> None:
    with servers.running({"dense": endless_folders["dense"]}) as server:
        client = server.client()
        stream = client.completions.create(model="dense", prompt="Once", max_tokens=480, temperature=0, stream=True)
        pieces = iter(stream)
        next(pieces)
        first = pid_of(server, "dense")
        os.kill(first, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="process ended"):
            list(pieces)
        again = client.completions.create(model="dense", prompt="Once", max_tokens=3)
        assert again.choices[0].finish_reason == "length"
        assert pid_of(server, "dense") != first


def test_a_process_that_the_system_kills_while_it_loads_lacked_memory(
    servers: Servers, served_folders: dict[str, Path]
) -> None:
    """The kernel's out-of-memory killer sends the same signal."""
    (launcher,) = (child for child in psutil.Process().children() if "serving.launcher" in " ".join(child.cmdline()))
    ending = {child.pid for child in launcher.children()}  # of the servers before
    with servers.running({"dense": served_folders["dense"]}) as server:
        done = threading.Event()

        def kill_the_first() -> None:
            while not done.is_set():
                for child in (child for child in launcher.children() if child.pid not in ending):
                    child.kill()
                    return

        thread = threading.Thread(target=kill_the_first)
        thread.start()
        response = server.post("/v1/chat/completions", json={"model": "dense", "messages": QUESTION})
        done.set()
        thread.join()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "out_of_memory")
        assert "killed by the system" in server.get("/health/detailed").json()["models"]["dense"]["problem"]
        time.sleep(int(response.headers["retry-after"]))
        ask(server, "dense")
        assert server.metric("acf_serve_loads_total", model="dense", outcome="out_of_memory") == 1


def test_a_full_queue_is_answered_at_once(servers: Servers, endless_folders: dict[str, Path]) -> None:
    options = EngineOptions(slots=1, queue=1)
    with servers.running({"dense": endless_folders["dense"]}, engine=options) as server:
        body = {"model": "dense", "prompt": "Once", "max_tokens": 480, "temperature": 0, "stream": True}
        url = f"{server.url}/v1/completions"
        with httpx.Client(timeout=PATIENCE_S) as client, client.stream("POST", url, json=body) as one:
            lines = one.iter_lines()  # kept: httpx hangs up when its iterator is dropped
            next(lines)
            with client.stream("POST", url, json=body):
                loaded = server.pool.models["dense"].loaded
                assert loaded is not None
                for streamed in (True, False):
                    third = server.post("/v1/completions", json={**body, "stream": streamed})
                    assert third.status_code == 503
                    assert third.json()["error"]["code"] == "overloaded"
                    assert third.headers["retry-after"] == "1"
                assert server.metric("acf_serve_queue_depth", model="dense") == 1
        server.wait_until(lambda: loaded.engine.running == 0)
        assert server.post("/v1/completions", json={**body, "stream": False, "max_tokens": 2}).status_code == 200


def test_a_folder_that_is_no_model_is_said_to_be_none(servers: Servers, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with servers.running({"broken": tmp_path}) as server:
        response = server.post("/v1/chat/completions", json={"model": "broken", "messages": QUESTION})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "model_unavailable"
        state = server.get("/health/detailed").json()
        assert state["status"] == "degraded"
        assert state["models"]["broken"]["problem"]
        assert server.get("/health").status_code == 200


@pytest.fixture
def registered(
    mlflow_store: tuple[MlflowClient, Path], served_folders: dict[str, Path], request: pytest.FixtureRequest
) -> Iterator[tuple[MlflowClient, str]]:
    """Version 1 is the dense checkpoint and version 2 the packed one; the champion is 1."""
    client, name = mlflow_store[0], f"served-{request.node.name}".replace("[", "-").strip("]")
    client.create_registered_model(name)
    for form in ("dense", "packed"):
        tags = {"acf.key": form, "acf.state": "frontier"}
        client.create_model_version(name, source=served_folders[form].as_uri(), tags=tags)
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "smallest", "2")
    yield client, name
    client.delete_registered_model(name)


def test_the_next_smaller_version_serves_when_memory_is_short(
    servers: Servers, registered: tuple[MlflowClient, str]
) -> None:
    client, name = registered
    source = RegistrySource(client, f"models:/{name}@champion")
    with servers.running({"model": source}, memory_bytes=76_000_000) as server:
        response = ask(server, "model")
        assert response.headers["x-acf-version"] == "version 2"
        assert response.headers["x-acf-fallback"] == "version 1 -> version 2; reason=memory"
        assert server.metric("acf_serve_fallbacks_total", model="model") == 1
        assert server.get("/health/detailed").json()["models"]["model"]["in_place_of"] == "version 1"
    with servers.running({"model": source}, memory_bytes=65_000_000) as server:
        response = server.post("/v1/chat/completions", json={"model": "model", "messages": QUESTION})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "out_of_memory"


@pytest.mark.parametrize("memory_bytes", [None, 100_000_000], ids=["beside", "after"])
def test_a_moved_alias_is_followed_without_losing_a_request(
    memory_bytes: int | None, servers: Servers, registered: tuple[MlflowClient, str]
) -> None:
    """With memory for both versions the new one is loaded beside the old one, without it after the old one ended."""
    client, name = registered
    source = RegistrySource(client, f"models:/{name}@champion")
    with servers.running({"model": source}, follow_s=0.3, memory_bytes=memory_bytes) as server:
        assert ask(server, "model").headers["x-acf-version"] == "version 1"
        seen: list[str] = []
        done = threading.Event()
        failed: list[BaseException] = []

        def keep_asking() -> None:
            try:
                while not done.is_set():
                    seen.append(ask(server, "model").headers["x-acf-version"])
            except BaseException as error:
                failed.append(error)

        body = {"model": "model", "prompt": "Once", "max_tokens": 300, "temperature": 2, "seed": 4, "stream": True}
        old = pid_of(server, "model")
        thread = threading.Thread(target=keep_asking)
        thread.start()
        with (
            httpx.Client(timeout=PATIENCE_S) as http,
            http.stream("POST", f"{server.url}/v1/completions", json=body) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            client.set_registered_model_alias(name, "champion", "2")
            server.wait_until(lambda: "version 2" in seen, PATIENCE_S)
            rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert stream.headers["x-acf-version"] == "version 1"
        server.wait_until(lambda: not alive(old))
        client.set_registered_model_alias(name, "champion", "1")
        server.wait_until(lambda: seen[-1] == "version 1", PATIENCE_S)
        done.set()
        thread.join()
        assert failed == []
        assert server.metric("acf_serve_swaps_total", model="model") == 2
        assert server.metric("acf_serve_active_models") == 1


def test_a_version_that_cannot_fit_does_not_cost_the_one_that_serves(
    servers: Servers, registered: tuple[MlflowClient, str]
) -> None:
    client, name = registered
    client.set_registered_model_alias(name, "champion", "2")  # the packed one, which is smaller
    source = RegistrySource(client, f"models:/{name}@champion")
    with servers.running({"model": source}, follow_s=0.3, memory_bytes=76_000_000) as server:
        assert ask(server, "model").headers["x-acf-version"] == "version 2"
        first = pid_of(server, "model")
        client.set_registered_model_alias(name, "champion", "1")
        server.wait_until(lambda: "goes on" in str(server.pool.models["model"].problem), PATIENCE_S)
        assert ask(server, "model").headers["x-acf-version"] == "version 2"
        assert pid_of(server, "model") == first
        assert server.metric("acf_serve_swaps_total", model="model") == 0


def test_keys_rates_and_origins(servers: Servers, served_folders: dict[str, Path]) -> None:
    key, other = "k" * 24, "another-key-of-somebody"
    settings = {
        "ACF_SERVE_API_KEYS": f"{key},{other}",
        "ACF_SERVE_REQUESTS_PER_MINUTE": 3,
        "ACF_SERVE_CORS_ORIGINS": "https://example.org",
    }
    with servers.running({"dense": served_folders["dense"]}, settings=settings) as server:
        assert server.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/health/detailed"):
            assert server.get(path).json()["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong" * 8).models.list()
        client = server.client(key)
        for _ in range(3):
            client.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            client.models.list()
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 20
        server.client(other).models.list()
        asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{server.url}/v1/chat/completions", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        refused = httpx.options(
            f"{server.url}/v1/chat/completions", headers={**asked, "Origin": "https://elsewhere.org"}
        )
        assert "access-control-allow-origin" not in refused.headers
