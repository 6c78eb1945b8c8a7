"""The process that holds the program: executes it, then answers calls to its function until the pipe closes."""

from __future__ import annotations

import builtins
import os
import sys
import traceback
import types
from typing import Any

from agentic_compression.sandbox.inside import wire

__all__ = ["NAME", "describe", "serve"]

NAME = "solution"
_FILE = "<program>"


def serve(task: int, incoming: int, outgoing: int) -> None:
    """Read the program from ``task``, then calls from ``incoming``; never returns.

    From the moment the program is loaded nothing in this process can be relied on, this function included.
    """
    message = wire.receive(task)
    os.close(task)
    if message is None:
        os._exit(0)
    module = types.ModuleType(NAME)
    sys.modules[NAME] = module
    function: Any = None
    try:
        exec(compile(message["program"], _FILE, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 (its purpose)
        function = module.__dict__.get(message["entry_point"])
        ready: dict[str, Any] = {"missing": True} if function is None else {"ready": True}
    except BaseException as error:
        ready = {"error": describe(error)}
    _flush()
    wire.send(outgoing, ready)
    while (call := wire.receive(incoming)) is not None:
        answer = _answer(function, call)
        _flush()
        try:
            wire.send(outgoing, answer)
        except wire.WireError as error:
            wire.send(outgoing, {"error": describe(error)})
    _flush()
    os._exit(0)


def _answer(function: Any, call: Any) -> dict[str, Any]:
    try:
        arguments, named = wire.decode(call)
        return {"value": wire.encode(function(*arguments, **named), foreign=True)}
    except BaseException as error:
        return {"error": describe(error)}


def describe(error: BaseException) -> dict[str, Any]:
    """Names of the built-in classes of an exception, nearest first, its text, and the program's line."""
    names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        text = str(error)[:300]
        steps = traceback.walk_tb(error.__traceback__)
        line = [0, *(number for frame, number in steps if frame.f_code.co_filename == _FILE)][-1]
    except BaseException:
        text, line = "", 0
    return {"names": names[:8], "kind": type(error).__name__[:100], "text": text, "line": line}


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: S112 (the program may have closed or replaced it)
            continue
