"""Model servers to compare, each in a process of its own: ``acf serve``, ``transformers serve``, llama.cpp's server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving_clients import SAMPLING, Endpoint

__all__ = ["Contender", "contenders", "copy_endless", "make_gguf", "ours", "run_llama_server", "running"]

_START_S = 25.0
"""For the first token, from the start of the process."""


@dataclass(frozen=True)
class Contender:
    """A server: its name, the form of the model, its command with ``{port}`` in it, and how it is asked."""

    name: str
    form: str
    command: Sequence[str]
    model: str = "model"
    fields: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def copy_endless(source: Path, target: Path) -> Path:
    """A copy of a checkpoint without a token that ends an answer, so that all answers have the length asked for."""
    shutil.copytree(source, target)
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        if (target / name).is_file():
            values = json.loads((target / name).read_text())
            kept = {key: value for key, value in values.items() if not key.startswith("eos_token")}
            (target / name).write_text(json.dumps(kept))
    return target


def make_gguf(folder: Path, root: Path) -> Path:
    """The checkpoint as a folder with a GGUF file in float16."""
    from agentic_compression.methods.compress import compress
    from agentic_compression.methods.request import CompressionRequest
    from agentic_compression.records import Strategy

    outcome = compress(
        CompressionRequest(
            model_path=str(folder),
            base_digest="benchmark",
            strategy=Strategy.parse("gguf:type=F16"),
            checkpoints_root=str(root),
            threads=1,
        )
    )
    assert outcome.checkpoint is not None, outcome.error
    return Path(outcome.checkpoint.path)


def contenders(dense: Path, gguf: Path, slots: int, threads: int) -> list[Contender]:
    """Every server of every form; both forms without a token that ends an answer."""
    return [
        _ours("dense", dense, slots, threads),
        _transformers("transformers serve", dense, threads),
        _transformers("transformers serve --continuous-batching", dense, threads, "--continuous-batching"),
        _ours("gguf", gguf, slots, threads),
        _llama(gguf, slots, threads),
    ]


def _ours(form: str, folder: Path, slots: int, threads: int, **environment: str) -> Contender:
    command = [sys.executable, "-m", "agentic_compression.cli.main", "serve", str(folder), "--name", "model"]
    return Contender(
        "acf serve",
        form,
        [*command, "--port", "{port}", "--threads", str(threads)],
        fields={"stream_options": {"include_usage": True}},
        environment={"ACF_SERVE_IDLE_S": "0", "ACF_SERVE_SLOTS": str(slots), **environment},
    )


def ours(folder: Path, slots: int, threads: int, idle_s: float) -> Contender:
    """``acf serve`` that unloads its model after so many seconds."""
    return _ours("dense", folder, slots, threads, ACF_SERVE_IDLE_S=str(idle_s), ACF_SERVE_QUEUE="1024")


def _transformers(name: str, folder: Path, threads: int, *options: str) -> Contender:
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    return Contender(
        name,
        "dense",
        [*command, "--port", "{port}", "--device", "cpu", *options],
        model=str(folder),
        environment={"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
    )


def _llama(folder: Path, slots: int, threads: int) -> Contender:
    (file,) = folder.glob("*.gguf")
    options = ["--llama-server", str(file), "--port", "{port}", "--slots", str(slots), "--threads", str(threads)]
    return Contender(
        "llama.cpp server",
        "gguf",
        [sys.executable, "-m", "benchmarks.serving", *options],
        fields={"stream_options": {"include_usage": True}, "ignore_eos": True},
    )


def run_llama_server(file: Path, port: int, slots: int, threads: int) -> None:
    """llama.cpp's own server from the ``xllamacpp`` wheel, until the process is ended."""
    import xllamacpp  # type: ignore[import-not-found]

    options = xllamacpp.CommonParams()
    options.model.path, options.port = str(file), port
    options.n_parallel, options.n_ctx = slots, slots * 512
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(options)
    while server.listening_address:
        time.sleep(1)


@contextmanager
def running(contender: Contender, log: Path) -> Iterator[tuple[Endpoint, subprocess.Popen[bytes]]]:
    """The server, once it has answered.

    Raises:
        RuntimeError: when it does not answer in time or ends; with the end of what it printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [part.replace("{port}", str(port)) for part in contender.command]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **contender.environment}, start_new_session=True
        )
    endpoint = Endpoint(port, contender.model, contender.fields)
    try:
        _wait(endpoint, process, contender, log)
        yield endpoint, process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(endpoint: Endpoint, process: subprocess.Popen[bytes], contender: Contender, log: Path) -> None:
    deadline, said = time.monotonic() + _START_S, "nothing"
    body = {"model": endpoint.model, "prompt": "a", "max_tokens": 1, **SAMPLING, **endpoint.fields}
    body.pop("stream_options", None)
    url = f"http://{endpoint.host}:{endpoint.port}/v1/completions"
    while (left := deadline - time.monotonic()) > 0 and process.poll() is None:
        try:
            answer = httpx.post(url, json=body, timeout=left)
            if answer.status_code == 200:
                return
            said = answer.text[:200]
        except httpx.ReadTimeout:
            said = "a connection and no answer"
        except httpx.TransportError as error:
            said = str(error)
        time.sleep(0.5)
    printed = log.read_text(errors="replace").strip()[-300:]
    raise RuntimeError(
        f"{contender.name} must answer a request within {_START_S:g} s of its start, got: {said}; it printed: {printed}"
    )
