"""The process that holds the test: runs ``check(proxy)`` and alone can report a pass."""

from __future__ import annotations

import builtins
import json
import os
import traceback
from typing import Any

from agentic_compression.sandbox.inside import wire

__all__ = ["judge"]

_FILE = "<test>"


class _Over(BaseException):
    """Nothing more can come from the worker; not an Exception, so that few tests would swallow it."""


class _Worker:
    """Calls to the program's function; remembers what a test might hide."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming = incoming
        self.outgoing = outgoing
        self.calls = 0
        self.answered = False
        self.over: str | None = None
        self.gone = False
        self.unsupported: str | None = None
        self.raised: BaseException | None = None
        self.place = ""

    def load(self) -> None:
        message = self._exchange(None)
        if message.get("missing"):
            raise self._end("the program does not define the function")
        if "error" in message:
            raise self._rebuild(message["error"])
        if not message.get("ready"):
            raise self._end("the program broke the protocol")

    def call(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        message = self._exchange(self._request(arguments, named))
        if "error" in message:
            raise self._rebuild(message["error"])
        try:
            value = wire.decode(message["value"])
        except (wire.WireError, KeyError) as error:
            raise self._end(f"the program broke the protocol: {error}") from None
        self.answered = True
        return value

    def _request(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> bytes:
        """The call as a frame. What cannot be sent is the test's fault, unless the program may have made it."""
        try:
            return wire.frame(wire.encode([list(arguments), named], foreign=False))
        except wire.WireError as error:
            if self.answered and isinstance(error, wire.ExcessError):
                raise self._end(f"what the program returned cannot be handed back to it: {error}") from None
            self.unsupported = str(error)
            raise

    def _exchange(self, request: bytes | None) -> dict[str, Any]:
        if self.over is not None:
            raise _Over(self.over)
        try:
            if request is not None:
                wire.write(self.outgoing, request)
            message = wire.receive(self.incoming)
        except (wire.WireError, OSError) as error:
            self.gone = True
            raise self._end(f"the program broke the protocol: {error}") from None
        if message is None:
            self.gone = True
            raise self._end("the program ended before the test did")
        if not isinstance(message, dict):
            raise self._end("the program broke the protocol: not a message")
        return message

    def _end(self, reason: str) -> _Over:
        self.over = reason
        return _Over(reason)

    def _rebuild(self, error: Any) -> BaseException:
        """The nearest built-in exception, kept in ``raised``; leaving the interpreter counts as ending.

        The end of an iteration becomes a ``RuntimeError``, as it does in a generator (PEP 479): ``all(map(f, items))``
        would take it for the end of the items and hold.
        """
        if not isinstance(error, dict) or not isinstance(error.get("names"), list):
            return self._end("the program broke the protocol")
        kind, text, line = str(error.get("kind"))[:100], str(error.get("text"))[:300], error.get("line")
        self.place = f" (line {line} of the program)" if isinstance(line, int) and 0 < line < 1 << 24 else ""
        known = [getattr(builtins, name, None) for name in error["names"] if isinstance(name, str)]
        types = [item for item in known if isinstance(item, type) and issubclass(item, Exception)]
        if not types:
            return self._end(f"the program raised {kind}: {text}{self.place}")
        if issubclass(types[0], (StopIteration, StopAsyncIteration)):
            self.raised = RuntimeError(f"{kind}: {text}")
            return self.raised
        try:
            self.raised = types[0](text)
        except Exception:  # a class that takes more arguments, such as UnicodeDecodeError
            self.raised = Exception(f"{kind}: {text}")
        return self.raised


def judge(task: int, incoming: int, outgoing: int, verdict: int) -> None:
    """Read helpers and test from ``task``, run them against the worker, write one JSON verdict; never returns."""
    message = wire.receive(task)
    os.close(task)
    if message is None:
        os._exit(0)
    worker = _Worker(incoming, outgoing)
    try:
        found = _run(message, worker)
    except BaseException as error:
        found = {"status": "failed", "message": f"judging ended with {_one_line(error)}"}
    wire.write(verdict, json.dumps(found).encode() + b"\n")
    os._exit(0)


def _run(message: dict[str, Any], worker: _Worker) -> dict[str, str]:
    names: dict[str, Any] = {"__name__": "test", "__builtins__": builtins}
    try:
        exec(compile(message["helpers"], "<helpers>", "exec", dont_inherit=True), names)  # noqa: S102 (trusted)
        names[message["entry_point"]] = worker.call
        exec(compile(message["test"], _FILE, "exec", dont_inherit=True), names)  # noqa: S102 (trusted)
        check = names["check"]
    except BaseException as error:
        return {"status": "invalid", "message": f"the test cannot run: {_one_line(error)}"}
    try:
        worker.load()
        check(worker.call)
        failure: BaseException | None = None
    except BaseException as error:
        failure = error
    return _verdict(worker, failure)


def _verdict(worker: _Worker, failure: BaseException | None) -> dict[str, str]:
    if worker.unsupported is not None:
        return {"status": "invalid", "message": worker.unsupported}
    if worker.over is not None:
        return {"status": "failed", "message": worker.over, **({"gone": "yes"} if worker.gone else {})}
    if failure is not None:
        return _failure(worker, failure)
    if worker.calls == 0:
        return {"status": "invalid", "message": "the test never called the function"}
    return {"status": "passed", "message": "every assertion held"}


def _failure(worker: _Worker, failure: BaseException) -> dict[str, str]:
    if failure is worker.raised:
        status = "out_of_memory" if isinstance(failure, MemoryError) else "failed"
        return {"status": status, "message": f"the program raised {_one_line(failure)}{worker.place}"}
    if isinstance(failure, NameError) and worker.raised is None:  # else a name may lack its value because of that
        return {"status": "invalid", "message": f"the test uses a name it was not given: {_one_line(failure)}"}
    steps = [number for frame, number in traceback.walk_tb(failure.__traceback__) if frame.f_code.co_filename == _FILE]
    place = f" at line {steps[-1]} of the test" if steps else ""
    return {"status": "failed", "message": f"{_one_line(failure)}{place}"}


def _one_line(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:300]
    except Exception:
        text = "(no text)"
    name = type(error).__name__
    return f"{name}: {text}" if text else name
