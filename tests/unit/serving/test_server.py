"""The socket that the server listens on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agentic_compression.errors import UnavailableError
from agentic_compression.serving.server import listening


def test_pieces_of_a_stream_are_sent_at_once() -> None:
    found: list[int] = []

    async def serve() -> None:
        done = asyncio.Event()

        async def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            done.set()

        listener = listening("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            await done.wait()
            writer.close()

    asyncio.run(serve())
    assert found
    assert found[0]


def test_an_address_in_use_is_named() -> None:
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]  # it has not accepted anything yet, and is another's all the same
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port} must be free") as caught:
            listening("127.0.0.1", port)
    assert "got: Address already in use; give --port" in str(caught.value)
