"""The soak test of the benchmark, short: what it measures is there, and nothing is left or broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving_clients import Client, Endpoint, Tally
from tests.integration.serving_servers import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent.parent


def test_clients_that_hang_up_leave_nothing_behind(home: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.serving", "--soak", "5", "--clients", "8"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "ACF_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["problems"] == []
    assert found["left"] == {"requests": 0, "running": 0, "waiting": 0}
    assert found["answers"] > 0
    assert found["hung_up"] > 0
    assert found["outcomes"]["cancelled"] >= found["hung_up"]
    levels = found["resident_bytes"]
    assert levels["before_load"]["engine"] == levels["after_unload"]["engine"] == 0 < levels["loaded"]["engine"]
    assert "no problem" in done.stderr


@pytest.mark.parametrize(
    ("sent", "wrong"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"text":"a"}\n\ndata: {"error":{"code":"x"}}\n\n0\r\n\r\n', "error"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"text":"a"}\n\n', "closed"),
        (b"", "closed"),
    ],
)
def test_the_benchmarks_clients_see_what_breaks(sent: bytes, wrong: str) -> None:
    """Or a soak test without errors would say nothing."""
    import asyncio

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await writer.drain()
        writer.close()

    async def ask() -> Tally:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        tally = Tally()
        async with server:
            client = Client(Endpoint(server.sockets[0].getsockname()[1]))
            await asyncio.wait_for(client.ask(4, tally, 0), 10)
            await client.close()
        return tally

    tally = asyncio.run(ask())
    assert len(tally.errors) == 1
    assert wrong in tally.errors[0]
    assert tally.answers == 0
