"""``acf serve`` as a process: what it says, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

PATIENCE_S = 240.0
KEY = "a-key-that-must-not-be-printed"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_stream_under_way_ends_whole_when_the_server_is_told_to_stop(home: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "agentic_compression.cli.main", "serve", "demo", "--port", str(port)]
    environment = {**os.environ, "ACF_HOME": str(home), "ACF_SERVE_API_KEYS": KEY}
    with subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {KEY}"}
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                assert httpx.get(f"{url}/health").status_code == 200
                break
            except httpx.TransportError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        body = {"model": "demo", "prompt": "Once", "max_tokens": 300, "temperature": 2, "seed": 4, "stream": True}
        with (
            httpx.Client(timeout=PATIENCE_S) as client,
            client.stream("POST", f"{url}/v1/completions", json=body, headers=headers) as stream,
        ):
            lines = stream.iter_lines()
            next(lines)
            children = psutil.Process(server.pid).children(recursive=True)
            server.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        output = server.communicate(timeout=60)[0]
    assert server.returncode == 0, output
    assert f"http://127.0.0.1:{port}/v1" in output
    assert "1 keys" in output
    assert KEY not in output
    assert len(children) >= 2
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_an_address_in_use_is_said(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "agentic_compression.cli.main", "serve", "demo", "--port", str(port)]
        environment = {**os.environ, "ACF_HOME": str(home)}
        done = subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.returncode == 1
    assert "must be free to listen on" in done.stderr
    assert "Errno" not in done.stderr
    assert f"{port}/v1" not in done.stdout  # no address before it is the server's own
