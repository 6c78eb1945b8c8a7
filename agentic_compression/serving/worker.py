"""The engine's process: loads one model, reads requests from a socket, answers on it. JSON, one message a line.

The main thread steps the model; another reads messages and prepares prompts meanwhile; JSON schemas are compiled in two
more. The process ends when the socket does, so that none outlives its server.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import socket
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import AcfError, UsageError
from agentic_compression.runtimes.interface import GenerationOptions
from agentic_compression.runtimes.sampling import TextStream
from agentic_compression.serving.batching import Job
from agentic_compression.serving.embedding import OpenEmbedder
from agentic_compression.serving.engine import EngineBusyError, EngineOptions, Generation, Prepared, PromptError
from agentic_compression.serving.grammar import GrammarReader
from agentic_compression.serving.loading import LoadedModel, load_engine
from agentic_compression.serving.prompts import PromptReader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Worker", "run_worker"]

_COMPILERS = 2


class Worker:
    """Serves one loaded model over one socket."""

    def __init__(self, connection: socket.socket, model: LoadedModel, options: EngineOptions) -> None:
        self._connection, self._model, self._queue = connection, model, options.queue
        self._sending = threading.Lock()
        self._scheduler = model.open_scheduler(self._tell, options.queue)
        self._prompts = PromptReader(model.tokenizer, model.context_length, options.max_new_tokens, model.cells)
        self._grammars = GrammarReader(model.tokenizer, model.ends)
        self._compilers = ThreadPoolExecutor(_COMPILERS, "schemas")
        self._compiling: set[int] = set()
        self._handing = threading.Lock()

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
        except Exception:
            traceback.print_exc()  # of a process that ends without returning
        finally:
            os._exit(code)

    def _handle(self, message: dict[str, Any]) -> None:
        operation, key = message.pop("op"), message.pop("id")
        if operation == "cancel":
            with self._handing:
                self._compiling.discard(key)
                self._scheduler.cancel(key)
            return
        with self._telling(key):
            if operation == "generate":
                self._generate(key, Generation(**{**message, "stop": tuple(message["stop"])}))
            else:
                self._embed(key, message["texts"], message["truncate"])

    @contextmanager
    def _telling(self, key: int) -> Iterator[None]:
        """Whatever is raised ends one request, not the engine."""
        try:
            yield
        except PromptError as error:
            self.send({"op": "error", "id": key, "kind": "prompt", "message": str(error), **_named(error)})
        except EngineBusyError as error:
            self._refuse(key, str(error))
        except Exception as error:
            self.send({"op": "error", "id": key, "kind": "engine", "message": f"{type(error).__name__}: {error}"[:500]})

    def _generate(self, key: int, request: Generation) -> None:
        ids, stop, prepared = self._prompts.read(request)
        options = GenerationOptions(
            prepared.new_tokens, stop, temperature=request.temperature, top_p=request.top_p, seed=request.seed
        )
        text = TextStream(self._model.tokenizer, stop)
        job = Job(key, ids, options, text, self._model.ends, request.top_logprobs, schema=request.schema)
        if request.schema is None:
            self._start(job, prepared)
        elif self._grammars.knows(request.schema):
            job.grammar = self._grammars.open(request.schema)
            self._start(job, prepared)
        elif len(self._compiling) >= self._queue:
            self._refuse(key)
        else:
            self._compiling.add(key)
            self._compilers.submit(self._constrain, job, prepared, request.schema)

    def _constrain(self, job: Job, prepared: Prepared, schema: str) -> None:
        """Compile the job's schema, unless nobody waits for it any more, and start the job."""
        with self._telling(job.key):
            if job.key in self._compiling:
                job.grammar = self._grammars.open(schema)
                with self._handing:
                    if job.key in self._compiling:
                        self._start(job, prepared)
        self._compiling.discard(job.key)

    def _start(self, job: Job, prepared: Prepared) -> None:
        if not self._scheduler.has_room():
            self._refuse(job.key)
            return
        # Before the scheduler has the job, or its first token could be told first.
        self.send({"op": "prepared", "id": job.key, **vars(prepared)})
        self._scheduler.submit(job)

    def _refuse(self, key: int, reason: str = "too many requests wait for this model") -> None:
        self.send({"op": "error", "id": key, "kind": "busy", "message": reason})

    def _embed(self, key: int, texts: Sequence[str | Sequence[int]], truncate: bool) -> None:
        embedder = self._model.embedder
        if embedder is None:
            raise PromptError(
                f"embeddings are not available, because {self._model.engine} generates and cannot embed beside it; "
                "serve the model without naming an engine",
                "embeddings_unavailable",
                "model",
            )
        encoded = [self._prompts.encode(text) for text in texts]
        longest, limit = max(len(ids) for ids in encoded), self._model.context_length
        if not all(encoded):
            raise PromptError(
                "a text must have a token or more, got none; leave empty ones out", "empty_input", "input"
            )
        if longest > limit and not truncate:
            raise PromptError(
                f"a text must have at most {limit} tokens, got {longest}; shorten it, or send truncation: auto",
                "context_length_exceeded",
                "input",
            )
        if not self._scheduler.has_room():
            self._refuse(key)
            return
        self._scheduler.add(key, self._embedding(key, embedder, [ids[:limit] for ids in encoded], longest > limit))

    def _embedding(
        self, key: int, embedder: OpenEmbedder, encoded: list[list[int]], cut: bool
    ) -> Generator[None, None, None]:
        vectors: list[NDArray[np.float32]] = []
        try:
            with embedder(max(len(ids) for ids in encoded)) as embed:
                for ids in encoded:
                    vectors += [(yield from embed(ids))]
        except Exception as error:  # whatever an architecture raises ends one request, not the engine
            kind = "memory" if isinstance(error, MemoryError) else "engine"
            self.send({"op": "error", "id": key, "kind": kind, "message": f"{type(error).__name__}: {error}"[:500]})
            return
        packed = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
        tokens = sum(len(ids) for ids in encoded)
        self.send({"op": "embedded", "id": key, "vectors": packed, "tokens": tokens, "truncated": cut})


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
        worker = Worker(connection, load_engine(folder, parsed), parsed)
    except (AcfError, OSError, RuntimeError, ValueError, MemoryError, KeyError, TypeError) as error:
        traceback.print_exc()
        connection.sendall(json.dumps({"op": "failed", **_failure(error)}).encode() + b"\n")
        return
    worker.serve()
