"""A scripted OpenAI-compatible server on a real socket: good answers, and everything that goes wrong with servers."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

__all__ = ["Response", "ScriptedModel", "answer", "decision", "scripted_model"]


@dataclass(frozen=True)
class Response:
    """What the server does with one request.

    Args:
        body: sent as it is.
        status: of the response.
        headers: besides the length.
        wait_s: before anything is sent.
        drip_s: between single bytes of the body.
        drop: cut the connection instead of answering.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    drip_s: float = 0.0
    drop: bool = False

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> Response:
        """A JSON body."""
        return cls(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    @classmethod
    def error(cls, status: int, message: str, code: str | None = None, **headers: str) -> Response:
        """An error as OpenAI's service words it."""
        return cls.of({"error": {"message": message, "type": "error", "code": code}}, status, **headers)


def answer(content: Any, finish_reason: str = "stop", refusal: str | None = None, tokens: int = 100) -> Response:
    """A chat completion with this content."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 10 * tokens, "completion_tokens": tokens, "total_tokens": 11 * tokens}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
    return Response.of({**whole, "usage": usage})


def decision(action: str = "search", **fields: Any) -> str:
    """The text of a decision."""
    expected = {
        "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9},
        "size_ratio": {"value": 0.3, "low": 0.2, "high": 0.4},
        "latency_ratio": {"value": 0.9, "low": 0.5, "high": 1.5},
        "memory_ratio": None,
        "co2_ratio": None,
    }
    return json.dumps({"rationale": "scripted", "action": action, "expected": expected, **fields})


Script = Callable[[dict[str, Any], int], Response]
"""From the body of a request and its number, from 0, to the response."""


class ScriptedModel:
    """The running server: its URL, and every request that it was sent."""

    def __init__(self, script: Script) -> None:
        self.script, self.url = script, ""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []


@contextmanager
def scripted_model(script: Script) -> Iterator[ScriptedModel]:
    """Serve until the block ends."""
    model = ScriptedModel(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            body = json.loads(self.rfile.read(length))
            number = len(model.requests)
            model.requests.append(body)
            model.headers.append({name.lower(): value for name, value in self.headers.items()})
            model.times.append(time.monotonic())
            self._send(model.script(body, number))

        def _send(self, response: Response) -> None:
            time.sleep(response.wait_s)
            self.close_connection = True
            if response.drop:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                return
            try:
                self.send_response(response.status)
                for name, value in response.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(response.body)))
                self.send_header("Connection", "close")
                self.end_headers()
                step = 1 if response.drip_s else len(response.body) or 1
                for at in range(0, len(response.body), step):
                    self.wfile.write(response.body[at : at + step])
                    time.sleep(response.drip_s)
            except OSError:
                return  # the client has had enough

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
