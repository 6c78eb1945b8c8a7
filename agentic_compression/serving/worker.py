"""The engine's process: loads one model, reads requests from a socket, answers on it. JSON, one message a line.

Two threads: the main one steps the model, the other reads messages and prepares prompts meanwhile. The process ends
when the socket does, so that none outlives its server.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import socket
import threading
import traceback
from pathlib import Path
from typing import Any

from agentic_compression.errors import AcfError, UsageError
from agentic_compression.runtimes.interface import GenerationOptions
from agentic_compression.runtimes.sampling import TextStream
from agentic_compression.serving.batching import Job, Scheduler
from agentic_compression.serving.engine import EngineOptions, Generation, PromptError
from agentic_compression.serving.loading import LoadedModel, load_model
from agentic_compression.serving.prompts import PromptReader

__all__ = ["Worker", "run_worker"]


class Worker:
    """Serves one loaded model over one socket."""

    def __init__(self, connection: socket.socket, model: LoadedModel, options: EngineOptions) -> None:
        self._connection, self._model = connection, model
        self._sending = threading.Lock()
        self._scheduler = Scheduler(model.slots, model.tokenizer, self._tell, options.queue)
        context = min(model.context_length, model.slots.cells)
        self._prompts = PromptReader(model.tokenizer, context, options.max_new_tokens)

    def serve(self) -> None:
        """Answer until the socket closes."""
        gc.freeze()  # the model's objects never become garbage; do not look at them again and again
        self.send({"op": "ready", **self._model.describe(self._prompts.has_template)})
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        self._scheduler.run()

    def send(self, message: dict[str, Any]) -> None:
        """Write one message; a server that is gone ends the process in ``_read``."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._sending:
            try:
                self._connection.sendall(line)
            except OSError:
                os._exit(0)

    def _tell(self, events: list[dict[str, Any]], running: int, waiting: int) -> None:
        self.send({"op": "step", "events": events, "running": running, "waiting": waiting})

    def _read(self) -> None:
        code = 1  # an engine that no longer reads must not look alive
        try:
            with self._connection.makefile("rb") as lines:
                for line in lines:
                    self._handle(json.loads(line))
            code = 0
        finally:
            os._exit(code)

    def _handle(self, message: dict[str, Any]) -> None:
        operation, key = message.pop("op"), message.pop("id")
        if operation == "cancel":
            self._scheduler.cancel(key)
            return
        try:
            if operation == "generate":
                self._generate(key, Generation(**{**message, "stop": tuple(message["stop"])}))
            else:
                self._embed(key, message["texts"], message["truncate"])
        except PromptError as error:
            self.send({"op": "error", "id": key, "kind": "prompt", "message": str(error), **_named(error)})
        except Exception as error:  # whatever a tokenizer raises ends one request, not the engine
            self.send({"op": "error", "id": key, "kind": "engine", "message": f"{type(error).__name__}: {error}"[:500]})

    def _generate(self, key: int, request: Generation) -> None:
        ids, stop, prepared = self._prompts.read(request)
        options = GenerationOptions(
            prepared.new_tokens, stop, temperature=request.temperature, top_p=request.top_p, seed=request.seed
        )
        text = TextStream(self._model.tokenizer, stop)
        job = Job(key, ids, options, text, self._model.ends, request.top_logprobs)
        if not self._scheduler.has_room():
            self.send({"op": "error", "id": key, "kind": "busy", "message": "too many requests wait for this model"})
            return
        # Before the scheduler has the job, or its first token could be told first.
        self.send({"op": "prepared", "id": key, **vars(prepared)})
        self._scheduler.submit(job)

    def _embed(self, key: int, texts: list[str], truncate: bool) -> None:
        lengths = [len(ids) for ids in self._model.tokenizer(texts, verbose=False)["input_ids"]]
        limit = self._model.context_length
        if not all(lengths):
            raise PromptError(
                "a text must have a token or more, got none; leave empty ones out", "empty_input", "input"
            )
        if max(lengths) > limit and not truncate:
            raise PromptError(
                f"a text must have at most {limit} tokens, got {max(lengths)}; shorten it, or send truncation: auto",
                "context_length_exceeded",
                "input",
            )

        def work() -> None:
            try:
                vectors = self._model.embed(texts)
            except (AcfError, RuntimeError, ValueError, MemoryError) as error:
                kind = "prompt" if isinstance(error, UsageError) else "engine"
                self.send({"op": "error", "id": key, "kind": kind, "message": str(error)[:500]})
                return
            encoded = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
            tokens = sum(min(length, limit) for length in lengths)
            cut = max(lengths) > limit
            self.send({"op": "embedded", "id": key, "vectors": encoded, "tokens": tokens, "truncated": cut})

        self._scheduler.call(work)


def _named(error: PromptError) -> dict[str, Any]:
    return {"code": error.code, "param": error.param}


def _failure(error: BaseException) -> dict[str, str]:
    """Why a model did not load, in a word and a sentence."""
    text = f"{error}" if isinstance(error, AcfError) else f"{type(error).__name__}: {error}"
    out_of_memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    if out_of_memory or "allocate memory" in text:
        return {"kind": "memory", "message": text[:1000]}
    return {"kind": "usage" if isinstance(error, UsageError) else "unavailable", "message": text[:1000]}


def run_worker(connection: socket.socket, folder: Path, options: str) -> None:
    """Load a model and serve it until the socket closes.

    Args:
        connection: to the server.
        folder: the checkpoint.
        options: ``EngineOptions`` as JSON.
    """
    parsed = EngineOptions(**json.loads(options))
    try:
        worker = Worker(connection, load_model(folder, parsed), parsed)
    except (AcfError, OSError, RuntimeError, ValueError, MemoryError, KeyError, TypeError) as error:
        traceback.print_exc()
        connection.sendall(json.dumps({"op": "failed", **_failure(error)}).encode() + b"\n")
        return
    worker.serve()
