"""What failed, whether asking again can help, and how long to wait before it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from agentic_compression.planning.llm.transport import BodyTooLargeError

__all__ = ["Failure", "failure_of", "pause"]

_PASSING = {408, 409, 425, 429}
_UNDERSTOOD = {400, 415, 422, 501}  # statuses with which servers refuse a parameter
_TOO_LONG = re.compile(r"context.{0,12}(length|window|size)|too many tokens|maximum.{0,20}tokens", re.IGNORECASE)
_FIRST_PAUSE_S = 1.0


@dataclass(frozen=True)
class Failure:
    """A request without a reply.

    Args:
        reason: in words, for the record.
        passing: whether the same request may succeed later.
        wait_s: what the server asked for.
        status: of the response; 0 without one.
    """

    reason: str
    passing: bool
    wait_s: float | None = None
    status: int = 0

    def refuses(self, parameter: str) -> bool:
        """Whether the server does not take a parameter of that name."""
        return self.status in _UNDERSTOOD and parameter in self.reason

    @property
    def refuses_format(self) -> bool:
        """Whether the server may not take the form of answer that was asked for; few say so in words."""
        return self.status in _UNDERSTOOD and not _TOO_LONG.search(self.reason)


def failure_of(problem: Exception) -> Failure:
    """Read an exception of the ``openai`` package."""
    import openai

    if isinstance(problem, openai.APIStatusError):
        status = problem.status_code
        exhausted = problem.code == "insufficient_quota"
        passing = (status in _PASSING or status >= 500) and not exhausted and status != 501
        said = _message(problem.body)
        reason = f"{_bare(status)}: {said}" if said else _bare(status)
        return Failure(reason, passing, _retry_after(problem.response.headers), status)
    cause = problem.__cause__ or problem
    if isinstance(cause, BodyTooLargeError):
        return Failure(str(cause), passing=False)
    if isinstance(problem, openai.APITimeoutError):
        return Failure("the request timed out", passing=True)
    if isinstance(problem, openai.APIConnectionError):
        return Failure(f"no connection ({type(cause).__name__}: {str(cause)[:120]})", passing=True)
    return Failure(f"{type(problem).__name__}: {str(problem)[:200]}", passing=False)


def pause(failure: Failure, failed: int, longest_s: float, jitter: float) -> float:
    """Seconds to wait before the next attempt.

    What the server asked for, if it did; otherwise doubled with every failure. A share of it is drawn, so that many
    clients do not come back at once, and nothing is longer than ``longest_s``.

    Args:
        failure: the latest one.
        failed: attempts that failed so far, at least 1.
        longest_s: whatever the server asks for.
        jitter: a draw from [0, 1).
    """
    if failure.wait_s is not None:
        return min(failure.wait_s + jitter * _FIRST_PAUSE_S * 0.25, longest_s)
    return min(_FIRST_PAUSE_S * 2 ** (failed - 1) * (0.5 + jitter), longest_s)


def _bare(status: int) -> str:
    return f"HTTP status {status}"


def _message(body: Any) -> str:
    """What an error's body says, wherever servers put it."""
    for _ in range(3):
        if isinstance(body, dict):
            body = body.get("message") or body.get("error") or body.get("detail") or ""
    return body[:400] if isinstance(body, str) else str(body or "")[:400]


def _retry_after(headers: Any) -> float | None:
    """Seconds that a server asks to wait: as milliseconds, seconds or a date; None where it does not or nonsense."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text):
            return float(text) * unit
        if text and name == "retry-after":
            return _until(text)
    return None


def _until(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((aware - datetime.now(UTC)).total_seconds(), 0.0)
