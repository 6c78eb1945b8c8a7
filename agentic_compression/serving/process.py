"""The engine as a process: starts a worker, sends it requests, hands its answers to who asked."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import signal
import socket
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from agentic_compression.errors import CompressionError, ModelError, UnavailableError
from agentic_compression.serving.engine import (
    Delta,
    Embedded,
    EngineBusyError,
    EngineDiedError,
    EngineInfo,
    EngineOptions,
    Generation,
    LoadMemoryError,
    Prepared,
    PromptError,
    TokenInfo,
)
from agentic_compression.serving.launcher import Launcher

__all__ = ["ProcessEngine", "start_engine"]

_LOG = logging.getLogger("agentic_compression.serving")
_LINE_BYTES = 1 << 28
_BROKEN_STEPS = 3


async def start_engine(
    launcher: Launcher, folder: Path, options: EngineOptions, log: Path, timeout_s: float
) -> ProcessEngine:
    """Load a model in a process of its own.

    Args:
        launcher: of the process.
        folder: the checkpoint.
        options: of loading.
        log: file that gets what the process prints.
        timeout_s: for loading.

    Raises:
        LoadMemoryError: when the model does not fit; the process being killed by the system counts as that.
        ModelError: when the folder is no model that can be served.
        UnavailableError: when the engine is not installed, or loading takes too long.
    """
    ours, theirs = socket.socketpair()
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_BYTES)
    pid = None
    try:
        async with asyncio.timeout(timeout_s):
            pid = await launcher.launch(theirs, folder, json.dumps(vars(options)), log)
            line = await reader.readline()
            if not line:
                _raise_ended(await launcher.ended(pid), folder, log)
        message = json.loads(line)
        if message.pop("op") == "failed":
            _raise_failed(message)
    except BaseException as error:
        writer.close()
        if pid is not None:
            await _end(launcher, pid)
        if isinstance(error, TimeoutError):
            raise UnavailableError(f"{folder} must load within {timeout_s:g} s, got no answer; see {log}") from error
        raise
    return ProcessEngine(launcher, reader, writer, EngineInfo(**message))


async def _end(launcher: Launcher, pid: int) -> None:
    launcher.kill(pid)
    await launcher.ended(pid)


def _raise_ended(code: int, folder: Path, log: Path) -> NoReturn:
    if code == -signal.SIGKILL:
        raise LoadMemoryError(f"{folder} must fit the memory, got its process killed by the system")
    raise UnavailableError(f"{folder} must load, got a process that ended with code {code}; see {log}")


def _raise_failed(message: dict[str, str]) -> NoReturn:
    kinds: dict[str, type[Exception]] = {"memory": LoadMemoryError, "usage": ModelError}
    raise kinds.get(message["kind"], UnavailableError)(message["message"])


class ProcessEngine:
    """See ``Engine``. Made by :func:`start_engine`."""

    def __init__(
        self,
        launcher: Launcher,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        info: EngineInfo,
    ) -> None:
        self.info = info
        self.running, self.waiting = 0, 0
        self._closed = False
        self._failed_steps = 0
        self._launcher, self._reader, self._writer = launcher, reader, writer
        self._keys = itertools.count()
        self._asked: dict[int, asyncio.Queue[dict[str, Any] | None]] = {}
        self._listener = asyncio.create_task(self._listen())

    @property
    def alive(self) -> bool:
        """Whether the process answers."""
        return not self._listener.done()

    @property
    def broken(self) -> bool:
        """Whether its last steps all failed: what one of them left behind may fail every other."""
        return self._failed_steps >= _BROKEN_STEPS

    @property
    def requests(self) -> int:
        """Requests that were asked and are not answered."""
        return len(self._asked)

    def resident_bytes(self) -> int:
        """Memory of the process; 0 when it ended."""
        import psutil

        try:
            return int(psutil.Process(self.info.pid).memory_info().rss)
        except psutil.Error:
            return 0

    async def generate(self, request: Generation) -> AsyncGenerator[Prepared | Delta, None]:
        """See ``Engine``."""
        with self._ask() as (key, answers):
            self._send({"op": "generate", "id": key, **request.message()})
            finished = False
            try:
                while not finished:
                    messages = [await answers.get()]
                    while not answers.empty():  # what came meanwhile goes out as one piece
                        messages.append(answers.get_nowait())
                    checked = [self._checked(message) for message in messages]
                    if checked[0]["op"] == "prepared":
                        first = checked.pop(0)
                        yield Prepared(first["prompt_tokens"], first["truncated"], first["new_tokens"])
                    if checked:
                        delta = _joined(checked)
                        finished = delta.finish is not None
                        yield delta
            finally:
                if not finished and self.alive:
                    self._send({"op": "cancel", "id": key})

    async def embed(self, texts: Sequence[str | Sequence[int]], truncate: bool) -> Embedded:
        """See ``Engine``."""
        with self._ask() as (key, answers):
            self._send({"op": "embed", "id": key, "texts": list(texts), "truncate": truncate})
            try:
                message = self._checked(await answers.get())
            except asyncio.CancelledError:
                if self.alive:
                    self._send({"op": "cancel", "id": key})
                raise
        vectors = [base64.b64decode(vector) for vector in message["vectors"]]
        return Embedded(vectors, message["tokens"], message["truncated"])

    async def close(self) -> None:
        """See ``Engine``."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        await _end(self._launcher, self.info.pid)
        await asyncio.gather(self._listener, return_exceptions=True)

    @contextlib.contextmanager
    def _ask(self) -> Any:
        if not self.alive:
            raise EngineDiedError("the engine must run to answer, got one whose process ended; send the request again")
        key, answers = next(self._keys), asyncio.Queue[dict[str, Any] | None]()
        self._asked[key] = answers
        try:
            yield key, answers
        finally:
            del self._asked[key]

    def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _checked(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """The message, or the error that it tells of."""
        if message is None:
            raise EngineDiedError("the engine's process ended before the answer; send the request again")
        kind = message.get("kind") or message.get("error")
        if kind is None:
            return message
        text = message["message"]
        if kind == "prompt":
            raise PromptError(text, message.get("code") or "invalid_prompt", message.get("param"))
        raise (EngineBusyError if kind in ("busy", "memory") else CompressionError)(text)

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if message["op"] != "step":
                    self._hand_over(message)
                    continue
                self.running, self.waiting = message["running"], message["waiting"]
                if message["events"]:
                    failed = any(event.get("error") in ("engine", "memory") for event in message["events"])
                    self._failed_steps = self._failed_steps + 1 if failed else 0
                for event in message["events"]:
                    event["op"] = "token"
                    self._hand_over(event)
        except ConnectionError:
            pass
        except Exception:  # what it wrote is no message: it is of no use any more, and is ended when it is asked next
            _LOG.exception("engine %d wrote what cannot be read", self.info.pid)
        finally:
            self.running = self.waiting = 0
            for answers in self._asked.values():
                answers.put_nowait(None)

    def _hand_over(self, message: dict[str, Any]) -> None:
        answers = self._asked.get(message["id"])
        if answers is not None:  # else it was cancelled meanwhile
            answers.put_nowait(message)


def _joined(messages: list[dict[str, Any]]) -> Delta:
    """Tokens of one answer as one piece."""
    entries = [message["logprobs"] for message in messages if "logprobs" in message]
    logprobs = tuple(
        TokenInfo(text, value, tuple((name, other) for name, other in top)) for text, value, top in entries
    )
    text = "".join(message["text"] for message in messages)
    return Delta(text, len(messages), messages[-1]["finish"], logprobs)
