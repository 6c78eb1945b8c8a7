"""Texts that cross the border: secrets taken out, length bounded, nothing in them that a terminal or a page obeys."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

__all__ = ["Redactor", "data_block", "plain_line"]

_SHORTEST_SECRET = 8
"""Shorter values (``x``, ``EMPTY``) are placeholders of local servers, and occur in ordinary words."""

_TAG_LIKE = re.compile(r"<(?=[A-Za-z/!?])")


class Redactor:
    """Takes the values of secrets out of texts.

    Args:
        secrets: their values; None and short ones are passed over.
    """

    def __init__(self, secrets: Iterable[str | None] = ()) -> None:
        values = {secret for secret in secrets if secret and len(secret) >= _SHORTEST_SECRET}
        forms = {form for value in values for form in (value, json.dumps(value)[1:-1])}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text with every secret replaced by ``[secret]``."""
        for form in self._forms:
            text = text.replace(form, "[secret]")
        return text

    def of(self, value: Any) -> Any:
        """The same for every string in a JSON-like value."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(str(key)): self.of(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item) for item in value]
        return value


def plain_line(text: str, limit: int = 600) -> str:
    """One line of visible text for records, terminals and pages: no control characters, no tags, no images.

    Args:
        text: from outside.
        limit: characters kept.
    """
    cut = text[: 4 * limit]  # what follows cannot be kept, so it need not be looked at
    visible = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in cut)
    line = _TAG_LIKE.sub("‹", " ".join(visible.split())).replace("![", "[")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def data_block(value: Any) -> str:
    """A JSON text between ``<data>`` and ``</data>`` that nothing inside can close or hide in.

    Angle brackets, ampersands and every control, format or unassigned character are written as JSON escapes.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escaped = "".join(_escaped(char) for char in text)
    return f"<data>\n{escaped}\n</data>"


def _escaped(char: str) -> str:
    if char not in "<>&" and (char == " " or unicodedata.category(char)[0] not in "CZ"):
        return char
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
