"""Text of others inside Markdown and YAML, so that it stays text: names of models, notes, answers."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["code", "line", "prose", "quoted"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!$])")
_MOST = 400


def line(text: str, most: int = _MOST) -> str:
    """One line of printable characters, cut at ``most``: no control, no direction marks, no runs of blanks."""
    kept = (" " if char.isspace() else char for char in text)
    printable = "".join(char for char in kept if char == " " or unicodedata.category(char)[0] != "C")
    short = " ".join(printable.split())
    return short if len(short) <= most else f"{short[: most - 1]}…"


def prose(text: str, most: int = _MOST) -> str:
    """As Markdown text, also inside a table: every character that could mean something is escaped."""
    return _SPECIAL.sub(r"\\\1", line(text, most))


def code(text: str, most: int = _MOST) -> str:
    """As inline code; the fence is longer than any run of backticks inside. Not for tables: a bar ends a cell."""
    shown = line(text, most) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def quoted(text: str, most: int = 120) -> str:
    """A model's answer or a prompt as Markdown text between quotation marks, line ends shown."""
    return f'"{prose(text.replace(chr(13), "").replace(chr(10), "⏎"), most)}"'
