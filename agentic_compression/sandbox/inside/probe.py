"""Which layers this machine allows: each is put on a child process, which then tries what the layer must prevent."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

from agentic_compression.sandbox.inside import landlock, mounts, seccomp
from agentic_compression.sandbox.inside.kernel import prctl

__all__ = ["working_layers"]

_PR_SET_NO_NEW_PRIVS = 38


def working_layers(folder: str, limits: dict[str, Any]) -> dict[str, str]:
    """Layer name to an empty text when it holds, else to what was wrong."""
    return {
        "namespaces": _reason(lambda: _try_namespaces(folder, limits["file_bytes"])),
        "landlock": _reason(_try_landlock),
        "seccomp": _reason(_try_seccomp),
    }


def _try_namespaces(folder: str, scratch_bytes: int) -> str:
    mounts.enter(folder, scratch_bytes)
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        return "the network of the machine is still there"
    if os.path.exists("/proc/self") or os.path.exists("/etc/passwd"):
        return "the files of the machine are still there"
    if not os.path.exists(os.__file__):
        return "the standard library is out of sight"
    mounts.new_process_tree()
    child = os.fork()
    if child == 0:
        os._exit(0 if os.getpid() == 1 else 1)
    return "processes of the machine are still there" if os.waitpid(child, 0)[1] else ""


def _try_landlock() -> str:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict(mounts.readable_paths(), [])
    os.close(os.open(os.__file__, os.O_RDONLY))
    for path in ("/proc/self/status", "/etc/passwd"):
        try:
            os.close(os.open(path, os.O_RDONLY))
        except (PermissionError, FileNotFoundError):
            continue
        return f"{path} can still be read"
    return ""


def _try_seccomp() -> str:
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install()
    for what in (socket.socket, os.fork):
        try:
            what()
        except PermissionError:
            continue
        return f"{what.__name__} still works"
    return ""


def _reason(attempt: Callable[[], str]) -> str:
    """What ``attempt`` returns in a child process, or how it failed there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            reason = attempt()
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
        os.write(writing, b"+" + reason.encode(errors="replace")[:400])
        os._exit(0)
    os.close(writing)
    told = os.read(reading, 500)
    os.close(reading)
    os.waitpid(child, 0)
    return (
        told[1:].decode() if told.startswith(b"+") else f"the attempt ended without a word (Python {sys.version[:6]})"
    )
