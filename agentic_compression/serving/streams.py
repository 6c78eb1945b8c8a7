"""Answers while their client is there: server-sent events, and work that ends when the client goes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from agentic_compression.serving.errors import RequestError, as_request_error

__all__ = ["ClientGoneError", "EventStream", "while_connected"]

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)
_SEND_S = 60.0


class ClientGoneError(RequestError):
    """The client went away before its answer; nobody sees this one."""

    def __init__(self) -> None:
        super().__init__(499, "client_gone", "the client closed the connection")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled when the client goes away.

    Raises:
        ClientGoneError: when it did.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            request.state.client_gone = True
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream(Response):
    """Server-sent events. However it ends, the events' generator and ``resources`` are closed.

    A client that stays connected and reads nothing for ``_SEND_S`` counts as gone.

    Args:
        events: values to send as JSON.
        resources: held as long as the answer is under way.
        headers: of the answer.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[dict[str, Any], None], resources: AsyncExitStack, headers: dict[str, str]
    ) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._events, self._resources = events, resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._send_all(scope, send))
        gone = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            else:
                raise ClientGoneError
        except ClientGoneError:
            scope["state"]["client_gone"] = True
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            await self._events.aclose()
            await self._resources.aclose()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await _pass_on(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        last = b"data: [DONE]\n\n"
        try:
            async for event in self._events:
                await _pass_on(send, {"type": "http.response.body", "body": _encoded(event), "more_body": True})
        except ClientGoneError:
            raise
        except Exception as error:  # the status is sent already, so the error is an event
            _LOG.exception("request %s failed while it was streamed", scope["state"]["request_id"])
            scope["state"]["broken"] = True
            last = _encoded(as_request_error(error).body(scope["state"]["request_id"]))
        await _pass_on(send, {"type": "http.response.body", "body": last, "more_body": False})


async def _pass_on(send: Send, message: Message) -> None:
    """Send while the client reads.

    Raises:
        ClientGoneError: when it takes nothing for too long.
    """
    try:
        async with asyncio.timeout(_SEND_S):
            await send(message)
    except TimeoutError as error:
        raise ClientGoneError from error


def _encoded(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
