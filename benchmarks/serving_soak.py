"""Many streaming clients for a while, some of which hang up: nothing may break, stay behind, or keep memory."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.serving_clients import Endpoint, storm
from benchmarks.serving_contenders import ours, running

__all__ = ["show", "soak"]

_SETTLE_S = 60.0


def soak(folder: Path, seconds: float, clients: int, new_tokens: int, threads: int, growth_mb: float) -> dict[str, Any]:
    """Everything measured, as JSON values; ``problems`` is empty when all is well.

    Args:
        folder: a checkpoint without a token that ends an answer.
        seconds: during which clients ask.
        clients: at once; three of ten answers are left in the middle.
        new_tokens: of an answer.
        threads: of the engine.
        growth_mb: resident memory of 10^6 bytes by which the server and its launcher may end above where they began.
    """
    idle_s = 3.0
    with running(ours(folder, 16, threads, idle_s), folder.parent / "soak.log") as (endpoint, process):
        _wait_until(lambda: _state(endpoint)["state"] == "unloaded")
        time.sleep(1)
        levels = {"before_load": _memory(process.pid, None)}
        asyncio.run(storm(endpoint, 1, 0.1, new_tokens))
        pid = int(_state(endpoint)["engine"]["pid"])
        levels["loaded"] = _memory(process.pid, pid)
        tally = asyncio.run(storm(endpoint, clients, seconds, new_tokens, 0.3))
        _wait_until(lambda: _left(endpoint) == [0, 0, 0])
        left = _left(endpoint)
        levels["after_storm"] = _memory(process.pid, pid)
        _wait_until(lambda: _state(endpoint)["state"] == "unloaded" and not psutil.pid_exists(pid))
        time.sleep(1)
        levels["after_unload"] = _memory(process.pid, pid)
        outcomes = _outcomes(endpoint)
    problems = [f"error: {error}" for error in tally.errors[:10]]
    if left != [0, 0, 0]:
        problems.append(f"requests, running and waiting must be 0 after the storm, got {left}")
    if unwanted := {name: count for name, count in outcomes.items() if name not in ("2xx", "cancelled") and count}:
        problems.append(f"only whole and cancelled answers are expected, got {unwanted}")
    if levels["after_unload"]["engine"]:
        problems.append(f"the engine's process must be gone, got {levels['after_unload']['engine']} bytes of it")
    for name in ("server", "launcher"):
        grown = (levels["after_unload"][name] - levels["before_load"][name]) / 1e6
        if grown > growth_mb:
            problems.append(f"the {name} may keep {growth_mb:g} MB more, got {grown:.1f} MB")
    return {
        "seconds": seconds,
        "clients": clients,
        "answers": tally.answers,
        "hung_up": tally.hung_up,
        "tokens": tally.tokens,
        "outcomes": outcomes,
        "left": dict(zip(("requests", "running", "waiting"), left, strict=True)),
        "resident_bytes": levels,
        "problems": problems,
    }


def show(found: dict[str, Any]) -> str:
    """A short table."""
    lines = [f"{found['clients']} clients, {found['seconds']:g} s: {found['answers']} answers, {found['hung_up']} left"]
    lines.append(f"{'resident MB':>14}  {'server':>8}  {'launcher':>8}  {'engine':>8}")
    for name, level in found["resident_bytes"].items():
        cells = "  ".join(f"{level[part] / 1e6:8.1f}" for part in ("server", "launcher", "engine"))
        lines.append(f"{name:>14}  {cells}")
    return "\n".join([*lines, *(found["problems"] or ["no problem"])])


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + _SETTLE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def _get(endpoint: Endpoint, path: str) -> httpx.Response:
    return httpx.get(f"http://{endpoint.host}:{endpoint.port}{path}", timeout=60)


def _state(endpoint: Endpoint) -> dict[str, Any]:
    state: dict[str, Any] = _get(endpoint, "/health/detailed").json()["models"][endpoint.model]
    return state


def _left(endpoint: Endpoint) -> list[int]:
    """Requests that hold the model, that decode, and that wait."""
    state = _state(endpoint)
    return [int(state.get(name, 0)) for name in ("requests", "running", "waiting")]


def _outcomes(endpoint: Endpoint) -> dict[str, int]:
    """Requests for completions by outcome."""
    lines = _get(endpoint, "/metrics").text.splitlines()
    found = (line for line in lines if line.startswith('acf_serve_requests_total{outcome="') and "/completions" in line)
    return {line.split('"')[1]: int(float(line.split()[-1])) for line in found}


def _memory(server: int, engine: int | None) -> dict[str, int]:
    """Resident bytes of the server, its launcher and the engine; 0 of what is gone."""
    children = [child.pid for child in psutil.Process(server).children()]
    return {"server": _resident(server), "launcher": sum(map(_resident, children)), "engine": _resident(engine)}


def _resident(pid: int | None) -> int:
    try:
        return 0 if pid is None else int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
