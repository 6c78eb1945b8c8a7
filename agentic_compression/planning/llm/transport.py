"""The HTTP client under the ``openai`` package: no redirects, no compression, a bound on the body and on the time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["BodyTooLargeError", "open_client"]


class BodyTooLargeError(Exception):
    """A response is larger than allowed, or its size cannot be bounded because it is compressed."""


def open_client(base_url: str, key: str, timeout_s: float, body_bytes: int) -> OpenAI:
    """A client for one request; close it (``with``) afterwards. Retries are the caller's.

    Args:
        base_url: of the endpoint.
        key: sent as a bearer token.
        timeout_s: for connecting, for any silence, and for the whole response.
        body_bytes: of a response, error or not; reading ends there.
    """
    from openai import DefaultHttpxClient, OpenAI

    ends = time.monotonic() + timeout_s

    def bound(response: Any) -> None:
        coding = response.headers.get("content-encoding", "identity").strip().lower()
        if coding not in {"", "identity"}:
            raise BodyTooLargeError(f"the response is compressed ({coding[:20]}) although that was not asked for")
        declared = response.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > body_bytes:
            raise BodyTooLargeError(f"the response has {declared[:20]} bytes, at most {body_bytes} are read")
        response.stream = _bounded(response.stream, body_bytes, ends)

    http = DefaultHttpxClient(timeout=timeout_s, follow_redirects=False, event_hooks={"response": [bound]})
    headers = {"Accept-Encoding": "identity"}
    return OpenAI(api_key=key, base_url=base_url, max_retries=0, http_client=http, default_headers=headers)


def _bounded(stream: Any, body_bytes: int, ends: float) -> Any:
    """The same stream, which ends with an error beyond that many bytes or that moment."""
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            read = 0
            for chunk in stream:
                read += len(chunk)
                if read > body_bytes:
                    raise BodyTooLargeError(f"the response is longer than {body_bytes} bytes")
                if time.monotonic() > ends:
                    raise httpx2.ReadTimeout("the response took too long")
                yield chunk

        def close(self) -> None:
            stream.close()

    return Bounded()
