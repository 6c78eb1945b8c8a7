"""The model server under load, beside the same engine without a server.

    python -m benchmarks.serving MODEL [--seconds 20] [--clients 1,4,16] [--storm 64] [--threads 1]

Throughput: N clients stream drawn answers of one length over real sockets. Two rates of the engine alone stand beside
it, measured in turns with it in one run, because a machine's speed drifts: the scheduler with the same requests in one
process, without sockets and JSON, and the runtime's ``time_batch``, which decodes N equal requests greedily and makes
no text.

Storm: many clients stream at once, and some hang up in the middle. Afterwards no request may be left in the engine,
and the memory of the engine that unloaded for idleness must be gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPT = "Question: Name these backwards: key candle hat compass.\nAnswer:"


@dataclass
class Tally:
    """What clients saw."""

    tokens: int = 0
    answers: int = 0
    hung_up: int = 0
    errors: list[str] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)


class Client:
    """One keep-alive connection that streams completions; no more work a token than reading a line."""

    def __init__(self, host: str, port: int, model: str) -> None:
        self._host, self._port, self._model = host, port, model
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, new_tokens: int, tally: Tally, seed: int, leave_after: int | None = None) -> None:
        """Stream one answer; hang up after so many events where told to."""
        body = {"model": self._model, "prompt": PROMPT, "max_tokens": new_tokens, "temperature": 1.5, "seed": seed}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        text = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(text)}\r\n\r\n"
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        assert self._reader is not None
        begun, events = time.perf_counter(), 0
        self._writer.write(head.encode() + text)
        status = await self._reader.readline()
        if b" 200 " not in status:
            tally.errors.append(status.decode().strip())
            await self.close()
            return
        while True:
            line = await self._reader.readline()
            if not line:
                tally.errors.append("the connection closed")
                await self.close()
                return
            if not line.startswith(b"data: "):
                if line == b"0\r\n":
                    await self._reader.readline()
                    return
                continue
            if not events:
                tally.first_token_s.append(time.perf_counter() - begun)
            events += 1
            if leave_after is not None and events >= leave_after:
                tally.hung_up += 1
                await self.close()
                return
            if b'"usage":{' in line:
                tally.tokens += int(json.loads(line[6:])["usage"]["completion_tokens"])
                tally.answers += 1
            elif b'"error":{' in line:
                tally.errors.append(line[:200].decode())

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None


async def storm(
    host: str, port: int, model: str, clients: int, seconds: float, new_tokens: int, leaving: float
) -> Tally:
    """So many clients ask again and again; a share of the answers is left in the middle."""
    tally, deadline = Tally(), time.perf_counter() + seconds

    async def one(number: int) -> None:
        generator, client = random.Random(number), Client(host, port, model)
        while time.perf_counter() < deadline:
            leave = generator.randrange(1, 8) if generator.random() < leaving else None
            await client.ask(new_tokens, tally, generator.randrange(1 << 30), leave)
        await client.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return tally


def offline(folder: Path, requests: int, new_tokens: int, seconds: float, threads: int) -> tuple[float, float]:
    """Tokens a second of the scheduler and of the runtime, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.serving", str(folder), "--offline", str(requests)]
    command += ["--new-tokens", str(new_tokens), "--seconds", str(seconds), "--threads", str(threads)]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(words[-2]), float(words[-1])


def run_runtime(folder: Path, requests: int, new_tokens: int, seconds: float, threads: int) -> float:
    """Tokens a second of ``time_batch``."""
    from agentic_compression.runtimes import open_runtime

    runtime = open_runtime(folder, threads=threads)
    prompts = [list(runtime.tokenizer(PROMPT)["input_ids"])] * requests
    runtime.time_batch(prompts, 4)
    rates, begun = [], time.perf_counter()
    while time.perf_counter() - begun < seconds or len(rates) < 3:
        rates.append(requests * new_tokens / runtime.time_batch(prompts, new_tokens).request_ms * 1e3)
    runtime.close()
    return statistics.median(rates)


def run_offline(folder: Path, requests: int, new_tokens: int, seconds: float, threads: int) -> float:
    """As ``offline``, in this process: all requests at once, a new one for each that ended."""
    from agentic_compression.runtimes import GenerationOptions
    from agentic_compression.runtimes.sampling import TextStream
    from agentic_compression.serving.batching import Job, Scheduler
    from agentic_compression.serving.engine import EngineOptions
    from agentic_compression.serving.loading import load_model

    model = load_model(folder, EngineOptions(slots=requests, threads=threads))
    prompt = list(model.tokenizer(PROMPT)["input_ids"])
    done = 0

    def told(events: list[dict[str, Any]], running: int, waiting: int) -> None:
        nonlocal done
        for event in events:
            done += 1
            if event.get("finish"):
                submit()

    def submit() -> None:
        options = GenerationOptions(new_tokens, temperature=1.5, seed=random.randrange(1 << 30))
        scheduler.submit(Job(0, prompt, options, TextStream(model.tokenizer, ()), model.ends))

    scheduler = Scheduler(model.slots, model.tokenizer, told)
    for _ in range(requests):
        submit()
    for _ in range(20):
        scheduler.step()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        scheduler.step()
    return done / (time.perf_counter() - begun)


def copy_endless(source: Path, target: Path) -> Path:
    """A copy of a checkpoint without a token that ends an answer, so that all answers have the length asked for."""
    shutil.copytree(source, target)
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        if (target / name).is_file():
            values = json.loads((target / name).read_text())
            kept = {key: value for key, value in values.items() if not key.startswith("eos_token")}
            (target / name).write_text(json.dumps(kept))
    return target


@contextmanager
def served(folder: Path, port: int, threads: int, idle_s: float) -> Iterator[None]:
    """``acf serve`` in a process of its own."""
    import os

    command = [sys.executable, "-m", "agentic_compression.cli.main", "serve", str(folder), "--name", "model"]
    command += ["--port", str(port), "--threads", str(threads)]
    server = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "ACF_SERVE_IDLE_S": str(idle_s)},
    )
    try:
        yield
    finally:
        server.terminate()
        server.wait()


def read_json(port: int, path: str) -> Any:
    """A route's answer."""
    import httpx

    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=60).json()


def warm_up(port: int) -> None:
    """Wait for the server and have the model loaded."""
    import httpx

    deadline = time.monotonic() + 600
    while True:
        try:
            body = {"model": "model", "prompt": "a", "max_tokens": 1}
            httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=600).raise_for_status()
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON values."""
    port, found = arguments.port, {"model": str(arguments.model), "new_tokens": arguments.new_tokens}
    rates: list[dict[str, Any]] = []
    with served(arguments.model, port, arguments.threads, 30.0):
        warm_up(port)
        for clients in map(int, arguments.clients.split(",")):
            online, alone, firsts = [], [], []
            for _ in range(arguments.rounds):
                alone.append(
                    offline(arguments.model, clients, arguments.new_tokens, arguments.seconds, arguments.threads)
                )
                begun = time.perf_counter()
                tally = asyncio.run(
                    storm("127.0.0.1", port, "model", clients, arguments.seconds, arguments.new_tokens, 0)
                )
                online.append(tally.tokens / (time.perf_counter() - begun))
                firsts += tally.first_token_s
                assert not tally.errors, tally.errors[:3]
            rates.append(
                {
                    "clients": clients,
                    "tokens_per_s": statistics.median(online),
                    "scheduler_tokens_per_s": statistics.median(one for one, _ in alone),
                    "runtime_tokens_per_s": statistics.median(other for _, other in alone),
                    "of_scheduler": _median_ratio(online, [one for one, _ in alone]),
                    "of_runtime": _median_ratio(online, [other for _, other in alone]),
                    "first_token_ms_median": statistics.median(firsts) * 1e3,
                    "first_token_ms_p95": statistics.quantiles(firsts, n=20)[-1] * 1e3,
                    "answers": len(firsts),
                }
            )
        before = read_json(port, "/health/memory")
        tally = asyncio.run(
            storm("127.0.0.1", port, "model", arguments.storm, arguments.storm_seconds, arguments.new_tokens, 0.3)
        )
        time.sleep(2)
        state = read_json(port, "/health/detailed")["models"]["model"]
        after = read_json(port, "/health/memory")
        time.sleep(40)
        idle = read_json(port, "/health/memory")
    return {
        **found,
        "rates": rates,
        "storm": {
            "clients": arguments.storm,
            "seconds": arguments.storm_seconds,
            "answers": tally.answers,
            "hung_up": tally.hung_up,
            "tokens": tally.tokens,
            "errors": tally.errors[:10],
            "requests_left": state["requests"],
            "running_left": state["running"],
            "first_token_ms_median": statistics.median(tally.first_token_s) * 1e3,
        },
        "memory_bytes": {"before_storm": before, "after_storm": after, "after_idle_unload": idle},
    }


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="server and engine in turns")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--storm", type=int, default=64, help="clients at once")
    parser.add_argument("--storm-seconds", type=float, default=30.0)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--offline", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.offline:
        asked = (arguments.model, arguments.offline, arguments.new_tokens, arguments.seconds / 2, arguments.threads)
        print(run_offline(*asked), run_runtime(*asked))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.model = copy_endless(arguments.model, Path(folder) / "model")
        print(json.dumps(measure(arguments), indent=2))


if __name__ == "__main__":
    main()
