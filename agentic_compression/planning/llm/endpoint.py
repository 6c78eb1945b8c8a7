"""One OpenAI-compatible endpoint: what it understands, and a request to it with bounds on time, size and retries.

Structured outputs are asked for first; a server that refuses them is asked for JSON, then for plain text. What worked
is kept in a file by endpoint and model, and tried anew after a week.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from agentic_compression.errors import ConfigurationError
from agentic_compression.planning.llm.prices import cost_usd
from agentic_compression.planning.llm.reply import Reply, read_reply
from agentic_compression.planning.llm.retries import Failure, failure_of, pause
from agentic_compression.planning.llm.texts import Redactor, plain_line
from agentic_compression.planning.llm.transport import open_client
from agentic_compression.settings import Settings
from agentic_compression.storage import write_atomically

__all__ = ["MODES", "Answered", "Endpoint", "Limits", "Mode", "configured_endpoint"]

Mode = Literal["json_schema", "json_object", "text"]
MODES: tuple[Mode, ...] = ("json_schema", "json_object", "text")

DEFAULT_URL = "https://api.openai.com/v1"
PLACEHOLDER_KEY = "no-key"
_TRUSTED_S = 7 * 24 * 3600.0
_TEMPERATURE = 0.0
_LESSONS = 5  # refusals of one question from which something is learned: every parameter once

_log = logging.getLogger(__name__)
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Limits:
    """Bounds on one question.

    Args:
        max_tokens: of the answer.
        timeout_s: of one request.
        deadline_s: of all requests and pauses of one question.
        attempts: requests that may fail before the question is given up.
        longest_pause_s: whatever a server asks for.
        body_bytes: of a response.
    """

    max_tokens: int = 4000
    timeout_s: float = 60.0
    deadline_s: float = 240.0
    attempts: int = 4
    longest_pause_s: float = 30.0
    body_bytes: int = 1 << 20


@dataclass(frozen=True)
class Dialect:
    """What an endpoint understands; the first guess is what the specification says."""

    mode: Mode = "json_schema"
    tokens_name: str = "max_completion_tokens"
    temperature: bool = True

    def weaker(self) -> Dialect | None:
        """The next mode that asks less of a server; None after plain text."""
        at = MODES.index(self.mode)
        return replace(self, mode=MODES[at + 1]) if at + 1 < len(MODES) else None


@dataclass(frozen=True)
class Answered:
    """What came of one question."""

    reply: Reply | None
    failure: str = ""
    attempts: int = 1
    seconds: float = 0.0
    started_at: str = ""
    cost: float | None = None
    mode: Mode = "json_schema"


class Endpoint:
    """A language model behind a URL.

    Args:
        base_url: with the version's path, such as ``https://api.openai.com/v1``; no user name or password in it.
        model: its name there.
        key: sent as a bearer token.
        limits: bounds on one question.
        memory: file that keeps what worked; nothing is kept without one.
        sleep: pauses; tests replace it.

    Raises:
        ConfigurationError: for a URL that is none, or that holds a user name, a password or a query.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str,
        limits: Limits,
        memory: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = _split(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ConfigurationError(
                "OPENAI_BASE_URL must be a URL such as https://host:port/v1, without user name, password or query, "
                "which would show in logs; put the key into OPENAI_API_KEY"
            )
        self.base_url, self.model, self.limits = base_url, model, limits
        self.redact = Redactor([key] if key != PLACEHOLDER_KEY else [])
        self._key, self._memory, self._sleep = key, memory, sleep
        self._name = f"{urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip('/'), '', ''))} {model}"
        plain = "max_completion_tokens" if parts.hostname == urlsplit(DEFAULT_URL).hostname else "max_tokens"
        self.dialect = self._recalled() or Dialect(tokens_name=plain)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """List price in USD of that many tokens here; None where it is not known."""
        return cost_usd(self.base_url, self.model, prompt_tokens, completion_tokens)

    def demand_less(self) -> None:
        """Stop asking for structured outputs, or for JSON: the server takes the wish and does not fulfil it."""
        self.dialect = self.dialect.weaker() or self.dialect

    def remember(self) -> None:
        """Keep what was just understood for the next process; a file that cannot be written is passed over."""
        if self._memory is None or self._recalled() == self.dialect:
            return
        held = {**self._remembered(), self._name: {**vars(self.dialect), "at": time.time()}}
        try:
            write_atomically(self._memory, json.dumps(held, indent=1) + "\n")
        except OSError as problem:
            _log.warning("planner: %s cannot be written (%s)", self._memory, type(problem).__name__)

    def ask(self, messages: Messages, schema: dict[str, Any]) -> Answered:
        """Ask once, repeating what fails for a passing reason.

        Args:
            messages: of the conversation.
            schema: JSON Schema of the answer, for servers that take one.

        Returns:
            The reply, or why there is none; never an exception for what a server or network does.
        """
        began, started_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        deadline = began + self.limits.deadline_s
        reply, failure, attempts, failed, lessons = None, "", 0, 0, 0
        while reply is None:
            attempts += 1
            outcome = self._request(messages, schema, deadline)
            if isinstance(outcome, Reply):
                reply = outcome
                break
            failure = outcome.reason
            if lessons < _LESSONS and self._learn_from(outcome):
                lessons += 1
                continue
            failed += 1
            wait = pause(outcome, failed, self.limits.longest_pause_s, random.random())  # noqa: S311 - jitter
            if not outcome.passing or failed >= self.limits.attempts or time.monotonic() + wait >= deadline:
                break
            _log.info("planner: %s; asking again in %.1f s", failure, wait)
            self._sleep(wait)
        spent = (reply.prompt_tokens, reply.completion_tokens) if reply else (0, 0)
        known = reply is not None and any(spent)
        return Answered(
            reply=reply,
            failure="" if reply else failure,
            attempts=attempts,
            seconds=time.monotonic() - began,
            started_at=started_at,
            cost=self.cost(*spent) if known else None,
            mode=self.dialect.mode,
        )

    def _request(self, messages: Messages, schema: dict[str, Any], deadline: float) -> Reply | Failure:
        left = min(self.limits.timeout_s, deadline - time.monotonic())
        if left <= 0:
            return Failure("no time left for the question", passing=False)
        try:
            with open_client(self.base_url, self._key, left, self.limits.body_bytes) as client:
                raw: Any = client.chat.completions.with_raw_response.create(**self._body(messages, schema))
                return self._redacted(read_reply(raw.text))
        except Exception as problem:  # whatever a server, proxy or library does is an outcome here
            failure = failure_of(problem)
            return replace(failure, reason=plain_line(self.redact(failure.reason), 300))

    def _redacted(self, reply: Reply) -> Reply:
        return replace(reply, text=self.redact(reply.text), refusal=self.redact(reply.refusal))

    def _body(self, messages: Messages, schema: dict[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            self.dialect.tokens_name: self.limits.max_tokens,
        }
        if self.dialect.temperature:
            body["temperature"] = _TEMPERATURE
        if self.dialect.mode == "json_schema":
            strict = {"name": "decision", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": strict}
        elif self.dialect.mode == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _learn_from(self, failure: Failure) -> bool:
        """Whether a refusal taught something, so that the same question may be put in another way."""
        before, dialect = self.dialect, self.dialect
        if failure.refuses("temperature") and dialect.temperature:
            dialect = replace(dialect, temperature=False)
        elif failure.refuses(dialect.tokens_name) and dialect.tokens_name == "max_completion_tokens":
            dialect = replace(dialect, tokens_name="max_tokens")
        elif failure.refuses("max_completion_tokens") and dialect.tokens_name == "max_tokens":
            dialect = replace(dialect, tokens_name="max_completion_tokens")
        elif failure.refuses_format:
            dialect = dialect.weaker() or dialect
        self.dialect = dialect
        return dialect != before

    def _remembered(self) -> dict[str, Any]:
        try:
            held = json.loads(self._memory.read_text(encoding="utf-8")) if self._memory else {}
        except (OSError, ValueError):
            return {}
        return held if isinstance(held, dict) else {}

    def _recalled(self) -> Dialect | None:
        held: Any = self._remembered().get(self._name)
        try:
            fresh = 0 <= time.time() - float(held["at"]) < _TRUSTED_S
            dialect = Dialect(held["mode"], held["tokens_name"], bool(held["temperature"]))
        except (KeyError, TypeError, ValueError):
            return None
        known = dialect.mode in MODES and dialect.tokens_name in {"max_tokens", "max_completion_tokens"}
        return dialect if fresh and known else None


def _split(base_url: str) -> Any:
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:
        return urlsplit("")
    return parts


def configured_endpoint(settings: Settings) -> Endpoint | None:
    """The endpoint that the environment names; None without a key and without a URL.

    Raises:
        ConfigurationError: for a URL that is none.
    """
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
    if not key and not settings.openai_base_url:
        return None
    limits = Limits(max_tokens=settings.planner_max_tokens, timeout_s=settings.planner_timeout_s)
    memory = settings.root / "data" / "planner_endpoints.json"
    url = settings.openai_base_url or DEFAULT_URL
    return Endpoint(url, settings.planner_model, key or PLACEHOLDER_KEY, limits, memory)
