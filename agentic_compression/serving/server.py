"""Runs the server until it is told to stop."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import UnavailableError

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["listening", "run_server", "uvicorn_options"]

_BACKLOG = 2048  # as uvicorn's own


def uvicorn_options(drain_s: float, proxies: Sequence[str]) -> dict[str, Any]:
    """Options of ``uvicorn.Config``.

    Args:
        drain_s: for answers under way at the end.
        proxies: addresses and networks whose ``X-Forwarded-For`` tells the client's address; nobody's when empty.
    """
    return {
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": bool(proxies),
        "forwarded_allow_ips": list(proxies),
        "timeout_graceful_shutdown": max(1, round(drain_s)),
        "h11_max_incomplete_event_size": 65_536,
    }


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; nobody else can take it from then on.

    It names its protocol, because asyncio sends at once (TCP_NODELAY) only on connections of a socket that does. On
    others each piece of a stream waits for the acknowledgement of the one before, which clients delay by 40 ms.

    Raises:
        UnavailableError: when the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"{host}:{port} must be free to listen on, got: {error.strerror or error}; give --port"
        ) from error
    return listener


def run_server(app: FastAPI, listener: socket.socket, drain_s: float, proxies: Sequence[str] = ()) -> None:
    """Serve until SIGINT or SIGTERM, then let answers that are under way finish, for ``drain_s`` at most."""
    import signal

    import uvicorn

    config = uvicorn.Config(app, **uvicorn_options(drain_s, proxies))
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal again once the answers are finished; that is a normal end
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run([listener])
