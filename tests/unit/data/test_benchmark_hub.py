"""A benchmark asked of a Hub that is not one, or not there: over a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agentic_compression.data.benchmark_hub import require_reachable
from agentic_compression.data.benchmarks import BENCHMARKS
from agentic_compression.errors import DatasetError
from agentic_compression.settings import Settings


class _Server(ThreadingHTTPServer):
    """Gives one answer to every question; a status of 0 closes the connection."""

    answer: tuple[int, bytes] = (200, b"{}")


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        status, body = self.server.answer
        if status == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with _Server(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_address[1]}")
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"<html>Please log in to this network</html>"), "not as a Hub does"),
        ((200, b"[]"), "not as a Hub does"),
        ((200, b"{}"), "not as a Hub does"),
        ((200, b"\xff\xfe"), "not as a Hub does"),
        ((404, b"{}"), "answered 404"),
        ((500, b""), "answered 500"),
        ((0, b""), "cannot be reached"),
    ],
    ids=["a login page", "another value", "an empty value", "no text", "nothing there", "broken", "hangs up"],
)
def test_what_is_no_hub_is_named_with_the_way_out(server: _Server, answer: tuple[int, bytes], words: str) -> None:
    server.answer = answer
    with pytest.raises(DatasetError, match=words) as raised:
        require_reachable(BENCHMARKS["gsm8k"], Settings())
    assert "--benchmark-dir" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://[", "file:///etc/passwd", "http://127.0.0.1:9"])
def test_an_endpoint_that_is_no_address_is_named(home: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(DatasetError, match="--benchmark-dir"):
        require_reachable(BENCHMARKS["gsm8k"], Settings())
