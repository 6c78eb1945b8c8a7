"""What every request passes before a route sees it: its id, its key, its rate, the size of its body."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentic_compression.serving.errors import RequestError, as_request_error, error_response
from agentic_compression.serving.metrics import Metrics
from agentic_compression.serving.security import ApiKeys, RateLimit, address_group
from agentic_compression.serving.streams import ClientGoneError

__all__ = ["Gate", "route_label"]

_LOG = logging.getLogger("agentic_compression.serving.requests")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_BODY_TIMEOUT_S = 30.0
_OPEN = frozenset({"/health"})
_ROUTES = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/health",
        "/health/detailed",
        "/health/memory",
        "/metrics",
        "/openapi.json",
        "/docs",
    }
)


def route_label(path: str) -> str:
    """A path as a metric's label: known ones as they are, so that nobody can make labels up."""
    if path in _ROUTES:
        return path
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"


class Gate:
    """ASGI middleware. Streams pass through it without a copy.

    Args:
        app: what comes after it.
        keys: that are accepted.
        rate: requests of one key, or of one address where there are no keys.
        failures: requests of one address without a key that is accepted. An address that had too many is not let in
            with a right key either until it has waited, or guessing would go on unhindered.
        metrics: told of every request.
        max_body_bytes: of one request.
    """

    def __init__(
        self, app: ASGIApp, keys: ApiKeys, rate: RateLimit, failures: RateLimit, metrics: Metrics, max_body_bytes: int
    ) -> None:
        self._app, self._keys, self._rate, self._failures, self._metrics = app, keys, rate, failures, metrics
        self._max_body = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0
        headers = Headers(scope=scope)
        given = headers.get("x-request-id")
        request_id = given if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def named_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            try:
                if given is not None and given != request_id:
                    raise RequestError(
                        400,
                        "invalid_request_id",
                        "X-Request-ID must have 1 to 128 letters, digits or ._:-, got another; leave it out",
                    )
                self._admit(scope, headers)
                body = await self._read_body(headers, receive)
                await self._app(scope, _replay(body, receive), named_send)
            except Exception as error:
                if not isinstance(error, RequestError):
                    _LOG.exception("request %s failed", request_id)
                if isinstance(error, ClientGoneError):
                    scope["state"]["client_gone"] = True
                if status:  # the answer has begun; cut it off, so that the client sees that it is not whole
                    scope["state"]["broken"] = True
                    raise
                await error_response(as_request_error(error), request_id)(scope, receive, named_send)
        finally:
            self._record(scope, status, time.perf_counter() - begun, request_id)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        path, caller = scope["path"], None
        client = scope.get("client")
        address = address_group(client[0]) if client else "unknown"
        if len(self._keys) and path not in _OPEN:
            caller = self._known_caller(address, headers)
        if path.startswith("/v1/"):
            wait = self._rate.wait_s(caller or address)
            if wait > 0:
                raise _too_many(f"at most {self._rate.per_minute} requests a minute, got more", wait)

    def _known_caller(self, address: str, headers: Headers) -> str:
        wait = self._failures.look(address)
        if wait > 0:
            raise _too_many(
                f"at most {self._failures.per_minute} requests a minute without a known key, got more", wait
            )
        caller = self._keys.caller(headers.get("authorization"))
        if caller is None:
            self._failures.wait_s(address)
            raise RequestError(
                401,
                "invalid_api_key",
                "a request needs 'Authorization: Bearer KEY' with a key of this server, got none that it knows",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return caller

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        declared = headers.get("content-length", "0")
        if declared.isascii() and declared.isdigit() and int(declared) > self._max_body:
            raise self._too_large(declared)
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > self._max_body:
                        raise self._too_large("more")
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise RequestError(408, "body_timeout", f"a body must arrive within {_BODY_TIMEOUT_S:g} s") from error

    def _too_large(self, got: str) -> RequestError:
        return RequestError(
            413,
            "body_too_large",
            f"a body must have at most {self._max_body} bytes, got {got}; shorten it",
            headers={"Connection": "close"},
        )

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = route_label(scope["path"])
        state: dict[str, Any] = scope["state"]
        gone, broken = state.get("client_gone", False), state.get("broken", False)
        outcome = "cancelled" if gone else "error" if broken or not status else f"{status // 100}xx"
        self._metrics.requests.labels(route, outcome).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if gone:
            self._metrics.cancelled.labels(route).inc()
        level = logging.INFO if route.startswith("/v1/") or status >= 400 else logging.DEBUG
        _LOG.log(
            level,
            "request_id=%s method=%s route=%s status=%s outcome=%s seconds=%.3f",
            request_id,
            scope["method"],
            route,
            status,
            outcome,
            seconds,
        )


def _too_many(text: str, wait_s: float) -> RequestError:
    seconds = math.ceil(wait_s)
    return RequestError(
        429,
        "rate_limit_exceeded",
        f"{text}; wait {seconds} s",
        headers={"Retry-After": str(seconds)},
        suggestions=(f"send it again in {seconds} s",),
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand over the body that was read, then whatever comes next, which is the client's going."""
    pending = True

    async def again() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
