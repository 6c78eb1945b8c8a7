"""The comparison of servers: what counts as an answer, and whose failure is whose."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving, serving_contenders
from benchmarks.serving_clients import Endpoint, Tally, make_prompt, storm


class Server:
    """Answers every request with one piece and a count of tokens, and keeps what was asked."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self.bodies: list[dict[str, Any]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readline():
                length = 0
                while (line := await reader.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                piece = {"choices": [{"text": "a"}], "usage": {"completion_tokens": self._tokens}}
                data = b"data: " + json.dumps(piece, separators=(",", ":")).encode() + b"\n\n"
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
                await asyncio.sleep(0.01)
        finally:
            writer.close()


def measured(tokens: int, new_tokens: int) -> tuple[Tally, list[dict[str, Any]]]:
    async def work() -> tuple[Tally, list[dict[str, Any]]]:
        server = Server(tokens)
        listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
        tally = await storm(Endpoint(listening.sockets[0].getsockname()[1]), 2, 0.2, new_tokens)
        listening.close()
        return tally, server.bodies

    return asyncio.run(work())


def test_a_short_answer_is_an_error() -> None:
    assert "must have 8 tokens, got 7" in measured(7, 8)[0].errors[0]
    assert measured(8, 8)[0].errors == []


def test_every_request_has_a_prompt_of_its_own_and_greedy_sampling() -> None:
    bodies = measured(4, 4)[1]
    assert len(bodies) > 4
    assert len({body["prompt"] for body in bodies}) > len(bodies) * 0.9
    assert {body["temperature"] for body in bodies} == {0}
    assert make_prompt(5) == make_prompt(5)


def test_a_server_that_fails_in_one_form_is_measured_in_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fake(endpoint: Endpoint, *_: Any) -> Tally:
        return Tally(errors=["broke"]) if endpoint.port == 1 else Tally(tokens=10, answers=1)

    monkeypatch.setattr(serving, "storm", fake)
    arguments = argparse.Namespace(seconds=0.1, new_tokens=4)
    servers = [("dense", "acf serve", Endpoint(1)), ("gguf", "acf serve", Endpoint(2))]
    samples: serving.Samples = defaultdict(list)
    missing: dict[tuple[str, str], str] = {}
    serving._measure_round(arguments, [1, 4], servers, samples, missing)
    assert list(missing) == [("dense", "acf serve")]
    assert list(samples) == [("gguf", "acf serve", 1), ("gguf", "acf serve", 4)]


def test_a_server_that_never_answers_is_given_up_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(serving_contenders, "_START_S", 1.5)
    silent = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    contender = serving_contenders.Contender("silent", "dense", [sys.executable, "-c", silent])
    with (
        pytest.raises(RuntimeError, match=r"silent must answer a request within 1\.5 s"),
        serving_contenders.running(contender, tmp_path / "log"),
    ):
        raise AssertionError


def test_answers_that_never_end_end_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any) -> Tally:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(serving, "storm", hang)
    monkeypatch.setattr(serving, "_LATE_S", 0.1)
    assert "still came" in asyncio.run(serving._storm_in_time(Endpoint(1), 1, 0.1, 4)).errors[0]
