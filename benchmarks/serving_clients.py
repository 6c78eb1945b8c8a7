"""Clients of a model server: streams of completions over real sockets, counted as they come."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["SAMPLING", "Client", "Endpoint", "Tally", "make_prompt", "storm"]

SAMPLING: Mapping[str, Any] = {"temperature": 0}
"""Greedy, which leaves no server's further defaults a say."""
_WORDS = ("key", "candle", "hat", "compass", "river", "stone", "ladder", "apple", "window", "garden", "mirror", "wheel")


def make_prompt(seed: int) -> str:
    """One of many of about one length that differ from the first words on, so that no cache of prompts has it."""
    words = random.Random(seed).choices(_WORDS, k=8)
    return f"{' '.join(words[:4])}: name these backwards: {' '.join(words[4:])}.\nAnswer:"


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how: fields that this server takes beside the common ones."""

    port: int
    model: str = "model"
    fields: Mapping[str, Any] = field(default_factory=lambda: {"stream_options": {"include_usage": True}})
    host: str = "127.0.0.1"


@dataclass
class Tally:
    """What clients saw."""

    tokens: int = 0
    answers: int = 0
    hung_up: int = 0
    errors: list[str] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)


class Client:
    """One keep-alive connection that streams completions; no more work a token than reading a line."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, new_tokens: int, tally: Tally, seed: int, leave_after: int | None = None) -> None:
        """Stream one answer; hang up after so many events where told to."""
        body = {"model": self._endpoint.model, "prompt": make_prompt(seed), "max_tokens": new_tokens, **SAMPLING}
        text = json.dumps({**body, "seed": seed, "stream": True, **self._endpoint.fields}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(text)}\r\n\r\n"
        try:
            begun = time.perf_counter()
            status = await self._send(head.encode() + text)
            if not await self._read(status, begun, tally, new_tokens, leave_after):
                await self.close()
        except OSError as error:
            tally.errors.append(f"{type(error).__name__}: {error}")
            await self.close()

    async def _send(self, request: bytes) -> bytes:
        """The first line of the answer. A server may close a kept connection between two answers: it is asked anew."""
        if self._writer is not None and self._reader is not None:
            try:
                self._writer.write(request)
                if status := await self._reader.readline():
                    return status
            except ConnectionError:
                pass
            await self.close()
        self._reader, self._writer = await asyncio.open_connection(self._endpoint.host, self._endpoint.port)
        self._writer.write(request)
        return await self._reader.readline()

    async def _read(self, status: bytes, begun: float, tally: Tally, new_tokens: int, leave_after: int | None) -> bool:
        """Read one answer to its end; whether the connection can take another request."""
        assert self._reader is not None
        if b" 200 " not in status:
            tally.errors.append(status.decode().strip() or "the connection closed")
            return False
        events, keep = 0, True
        while line := await self._reader.readline():
            if line.lower() == b"connection: close\r\n":
                keep = False
            if line == b"0\r\n":
                await self._reader.readline()
                return keep
            if not line.startswith(b"data: "):
                continue
            if b'"text":' in line and not events:
                tally.first_token_s.append(time.perf_counter() - begun)
            events += 1
            if leave_after is not None and events >= leave_after:
                tally.hung_up += 1
                return False
            if b'"usage":{' in line:
                tokens = int(json.loads(line[6:])["usage"]["completion_tokens"])
                tally.tokens += tokens
                tally.answers += 1
                if tokens < new_tokens:
                    tally.errors.append(f"an answer must have {new_tokens} tokens, got {tokens}")
            elif b'"error":' in line:
                tally.errors.append(line[:200].decode())
        if keep:
            tally.errors.append("the connection closed")
        return False

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None


async def storm(endpoint: Endpoint, clients: int, seconds: float, new_tokens: int, leaving: float = 0.0) -> Tally:
    """So many clients ask again and again; a share of the answers is left in the middle."""
    tally, deadline = Tally(), time.perf_counter() + seconds

    async def one(number: int) -> None:
        generator, client = random.Random(number), Client(endpoint)
        try:
            while time.perf_counter() < deadline:
                leave = generator.randrange(1, 8) if generator.random() < leaving else None
                await client.ask(new_tokens, tally, generator.randrange(1 << 30), leave)
        finally:
            await client.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    return tally
