"""Answers in OpenAI's wire format, whole or in pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentic_compression.serving.engine import Delta, TokenInfo

__all__ = ["Answer", "ChoiceState", "embedding_answer", "model_card"]

_LEAST_LOGPROB = -9999.0

Kind = Literal["chat", "text"]


@dataclass
class ChoiceState:
    """One choice while its pieces come in."""

    text: str = ""
    tokens: int = 0
    finish: str | None = None
    logprobs: list[TokenInfo] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Take in a piece."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.finish = delta.finish
        self.logprobs += delta.logprobs


@dataclass
class Answer:
    """Builds the bodies of one answer.

    Attributes:
        kind: chat or plain completion.
        model: the served name.
        fingerprint: which version answered.
        prompt_tokens: of every prompt, counted once whatever n.
        truncated: whether the prompt was cut.
        wants_logprobs: whether they were asked for.
        with_usage: every streamed piece has a ``usage`` field, null until the last.
    """

    kind: Kind
    model: str
    fingerprint: str
    prompt_tokens: int
    truncated: bool
    wants_logprobs: bool
    with_usage: bool
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[ChoiceState]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        built = []
        for index, choice in enumerate(choices):
            content: dict[str, Any] = {"text": choice.text}
            if self.kind == "chat":
                content = {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            logprobs = self._logprobs(choice.logprobs, 0) if self.wants_logprobs else None
            built.append({"index": index, **content, "logprobs": logprobs, "finish_reason": choice.finish})
        usage = self.usage(sum(choice.tokens for choice in choices))
        return {**self._head(whole=True), "choices": built, "usage": usage}

    def first(self, index: int) -> dict[str, Any] | None:
        """The piece that opens a streamed choice of a chat."""
        if self.kind == "text":
            return None
        return self._piece([self._choice(index, {"delta": {"role": "assistant", "content": ""}}, None, None)])

    def piece(self, index: int, delta: Delta, offset: int) -> dict[str, Any]:
        """A streamed piece; ``offset`` is the length of the choice's text before it."""
        content: dict[str, Any] = {"text": delta.text}
        if self.kind == "chat":
            content = {"delta": {"content": delta.text} if delta.text or delta.finish is None else {}}
        logprobs = self._logprobs(delta.logprobs, offset) if self.wants_logprobs else None
        return self._piece([self._choice(index, content, logprobs, delta.finish)])

    def last(self, tokens: int) -> dict[str, Any]:
        """The piece with the usage."""
        return {**self._piece([]), "usage": self.usage(tokens)}

    def usage(self, tokens: int) -> dict[str, int]:
        """Tokens of prompt and answer."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def _head(self, *, whole: bool) -> dict[str, Any]:
        names = {"chat": ("chatcmpl", "chat.completion"), "text": ("cmpl", "text_completion")}
        prefix, name = names[self.kind]
        chunk = ".chunk" if self.kind == "chat" and not whole else ""
        return {
            "id": f"{prefix}-{self.key}",
            "object": name + chunk,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "truncated": self.truncated,
        }

    def _piece(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.with_usage else {}
        return {**self._head(whole=False), "choices": choices, **usage}

    def _choice(
        self, index: int, content: dict[str, Any], logprobs: dict[str, Any] | None, finish: str | None
    ) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[TokenInfo], offset: int) -> dict[str, Any]:
        if self.kind == "chat":
            content = [
                {**_named(token.text, token.logprob), "top_logprobs": [_named(*item) for item in token.top]}
                for token in tokens
            ]
            return {"content": content, "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [max(token.logprob, _LEAST_LOGPROB) for token in tokens],
            "top_logprobs": [
                {text: max(value, _LEAST_LOGPROB) for text, value in token.top} or None for token in tokens
            ],
            "text_offset": offsets,
        }


def _named(text: str, logprob: float) -> dict[str, Any]:
    """A token's bytes are not known where it is a part of a character."""
    known = "\N{REPLACEMENT CHARACTER}" not in text
    return {
        "token": text,
        "logprob": max(logprob, _LEAST_LOGPROB),
        "bytes": list(text.encode()) if known else None,
    }


def embedding_answer(model: str, vectors: Sequence[list[float] | str], tokens: int, truncated: bool) -> dict[str, Any]:
    """Body of an answer of ``/v1/embeddings``."""
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage, "truncated": truncated}


def model_card(name: str, created: int) -> dict[str, Any]:
    """A model as ``/v1/models`` shows it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "acf"}
