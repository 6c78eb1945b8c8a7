"""The one form of every error that the server answers with, and which status an exception gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from agentic_compression.errors import AcfError, UnavailableError, UsageError
from agentic_compression.serving.engine import EngineBusyError, EngineDiedError, LoadMemoryError, PromptError

__all__ = ["ErrorBody", "ErrorEnvelope", "RequestError", "as_request_error", "error_response", "refused_body"]


class ErrorBody(BaseModel):
    """What went wrong and what to do."""

    code: str = Field(description="for programs, such as model_not_found")
    type: str = Field(description="family of the code, as OpenAI names them")
    message: str = Field(description="for people: what, got, allowed, next")
    param: str | None = Field(default=None, description="the field at fault")
    suggestions: list[str] = Field(default_factory=list, description="what to try next")
    request_id: str = Field(description="the same as in the X-Request-ID header")


class ErrorEnvelope(BaseModel):
    """Every answer that is not a success."""

    error: ErrorBody


class RequestError(AcfError):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        suggestions: tuple[str, ...] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.suggestions, self.headers = suggestions, headers or {}

    @property
    def kind(self) -> str:
        """OpenAI's name for the family."""
        named = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self, request_id: str) -> dict[str, Any]:
        """The envelope as JSON values."""
        error = ErrorBody(
            code=self.code,
            type=self.kind,
            message=_printable(str(self)),
            param=None if self.param is None else _printable(self.param),
            suggestions=[_printable(item) for item in self.suggestions],
            request_id=request_id,
        )
        return ErrorEnvelope(error=error).model_dump()


def error_response(error: RequestError, request_id: str) -> JSONResponse:
    """The answer, with its headers."""
    return JSONResponse(error.body(request_id), error.status, {"X-Request-ID": request_id, **error.headers})


_SMALLER = ("use a smaller version of the model", "raise ACF_SERVE_MEMORY_GB")
_DETAILS = ("see /health/detailed and the server's log",)
_ANSWERS: tuple[tuple[type[AcfError], int, str, str, tuple[str, ...], int], ...] = (
    (EngineBusyError, 503, "overloaded", "", ("send it again later",), 1),
    (EngineDiedError, 503, "engine_ended", "", ("send it again",), 1),
    (LoadMemoryError, 503, "out_of_memory", "the model does not fit the memory that it may use", _SMALLER, 30),
    (UsageError, 503, "model_unavailable", "the model cannot be loaded", _DETAILS, 0),
    (UnavailableError, 503, "model_unavailable", "the model cannot be loaded", _DETAILS, 0),
    (AcfError, 500, "engine_error", "", (), 0),
)
"""Exception, status, code, message (its own when empty: others name the server's folders), suggestions, seconds to
wait; the first that fits counts."""


def as_request_error(error: Exception) -> RequestError:
    """The answer that an exception of this package gets; anything unexpected says nothing of its cause."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PromptError):
        return RequestError(400, error.code, str(error), param=error.param)
    for kind, status, code, text, hints, wait in _ANSWERS:
        if isinstance(error, kind):
            headers = {"Retry-After": str(wait)} if wait else None
            return RequestError(status, code, text or str(error), suggestions=hints, headers=headers)
    return RequestError(500, "internal_error", "the server failed; its log has the cause under this request_id")


def refused_body(faults: Sequence[Mapping[str, Any]], body: Any) -> RequestError:
    """The answer to a body that does not fit its route.

    Args:
        faults: at least one, as pydantic lists them.
        body: as it was sent, read as JSON.
    """
    first, *more = faults
    if first["type"] == "json_invalid":
        return RequestError(400, "invalid_json", f"the body must be JSON: {first['ctx']['error']}")
    where, what = _place(first, body), _fault(first)
    hints = tuple(f"{_place(fault, body) or 'the body'}: {_fault(fault)}"[:200] for fault in more[:3])
    message = f"{where or 'the body'}: {what}"
    return RequestError(422, "invalid_request", message, param=where or None, suggestions=hints)


def _place(fault: Mapping[str, Any], body: Any) -> str:
    """Where a fault lies: names and indexes of the body only, not what a validator calls its own parts."""
    parts, value = [], body
    for part in fault["loc"][1:]:
        indexed = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if indexed or (isinstance(value, dict) and part in value):
            parts.append(str(part))
            value = value[part]
    if fault["type"] == "missing" and isinstance(value, dict) and len(fault["loc"]) > 1:
        parts.append(str(fault["loc"][-1]))
    return ".".join(parts)


def _fault(fault: Mapping[str, Any]) -> str:
    if fault["type"] in {"model_type", "model_attributes_type"}:
        return "must be an object"
    return str(fault["msg"]).removeprefix("Value error, ")


def _printable(text: str) -> str:
    """Without lone surrogates, which JSON may carry and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode("utf-8")[:2000]
