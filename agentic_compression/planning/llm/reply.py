"""A chat completion as it came over the wire, read without trusting its form."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["InvalidAnswerError", "Reply", "first_object", "read_reply"]

_LONGEST_ANSWER = 60_000  # characters; a decision takes a few hundred
_OBJECT_STARTS = 100  # braces that are tried as the beginning of the object


class InvalidAnswerError(Exception):
    """An answer that holds no usable decision; the text says what is wrong with it, for the model to correct.

    Args:
        reason: what is wrong.
        without_object: there was no JSON object at all.
    """

    def __init__(self, reason: str, *, without_object: bool = False) -> None:
        super().__init__(reason)
        self.without_object = without_object


@dataclass(frozen=True)
class Reply:
    """What of a completion matters here."""

    text: str
    refusal: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problem: str = ""  # why there is no text

    @property
    def usable(self) -> str:
        """The text.

        Raises:
            InvalidAnswerError: when it is empty, refused or cut short.
        """
        if self.refusal:
            raise InvalidAnswerError(f"the model refused: {self.refusal[:200]}")
        if self.finish_reason == "content_filter":
            raise InvalidAnswerError("the answer was withheld by a content filter")
        if self.finish_reason == "length":
            raise InvalidAnswerError("the answer was cut off at the token limit; answer more briefly")
        if not self.text.strip():
            raise InvalidAnswerError(self.problem or "the answer was empty", without_object=True)
        return self.text


def read_reply(body: str) -> Reply:
    """Read the body of a response; whatever is missing or of another type is left empty."""
    try:
        whole: Any = json.loads(body)
    except (ValueError, RecursionError):
        return Reply(text="", problem="the response is not JSON")
    whole = _mapping(whole)
    usage, choices = _mapping(whole.get("usage")), whole.get("choices")
    prompt_tokens, completion_tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        problem = "the response has no choices"
        return Reply("", prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, problem=problem)
    message = _mapping(choices[0].get("message"))
    return Reply(
        text=_text(message.get("content"))[:_LONGEST_ANSWER],
        refusal=_text(message.get("refusal"))[:1000],
        finish_reason=_text(choices[0].get("finish_reason"))[:40],
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def first_object(text: str) -> dict[str, Any]:
    """The JSON object in an answer: the whole of it, or the first one that names an action among other words.

    Raises:
        InvalidAnswerError: when there is none.
    """
    decoder, at, found = json.JSONDecoder(), -1, None
    for _ in range(_OBJECT_STARTS):
        at = text.find("{", at + 1)
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found = value if found is None else found
            if "action" in value:
                return value
            at = end - 1
    if found is None:
        raise InvalidAnswerError("the answer holds no JSON object", without_object=True)
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(content: Any) -> str:
    """A string, or the texts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text(part.get("text")) if isinstance(part, dict) else _text(part) for part in content[:100])
    return ""


def _count(value: Any) -> int:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    return int(value) if whole else 0
