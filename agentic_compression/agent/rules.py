"""Reads objectives in English and Chinese by rules: the usual phrases, each from its words to a statement.

Rules are tried in their order, and what one has read no other reads again, so the more particular stand first. A
phrase behind a negation that no rule knows ("not the smallest") is left unread, and so shown as not understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache

from agentic_compression.agent.phrases import BOUNDS, GOALS
from agentic_compression.agent.reading import NormalText, wish_of
from agentic_compression.agent.vocabulary import NUMBERS, VOCABULARY, Convert
from agentic_compression.agent.wish import Statement, Wish

__all__ = ["read_by_rules"]

_NEGATED = re.compile(
    r"(?:\b(?:not|never|no|without|nor|avoid|ignor\w+)|n't)\s*(?:[\w']+\s+){0,3}$|(?:不|别|勿|非|无需)(?:要|用|必|需|需要|想|是)?\s*$"
)


_BALANCED = re.compile(
    r"\bbalanced?\b(?:\s+(?:trade-?offs?|everything|all objectives))?|\bbest trade-?offs?|all[- ]round(?:er)?"
    r"|平衡|均衡|权衡|兼顾"
)
_PLACEHOLDER = re.compile(r"(?<!\(\?P)<([A-Z_0-9]+)>")


def read_by_rules(text: str, note: str = "") -> Wish:
    """Read an objective; the same text always gives the same wish, and no text is an error.

    Args:
        text: in English or Chinese, Traditional or Simplified.
        note: kept with the wish, for example why no language model read it.
    """
    normal = NormalText(text)
    found = sorted(_statements(normal, list(normal.normal)), key=lambda pair: pair[0])
    return wish_of(text, [statement for _, statement in found], "rules", note=note)


def _statements(normal: NormalText, open_: list[str]) -> Iterator[tuple[int, Statement]]:
    """Every statement with its place; what is read is blanked in ``open_``, so that it is not read twice."""
    for pattern, quantity, operator, convert in _bounds():
        for match in _unread(pattern, open_):
            groups = {name[0]: value for name, value in match.groupdict().items() if value is not None}
            value = convert(_value(groups.get("n")), groups.get("u", ""))
            yield match.start(), _statement(normal, match, quantity, operator, value)
    for quantity, pattern in _goals():
        for match in _unread(pattern, open_):
            yield match.start(), _statement(normal, match, quantity, "best", None)
    for match in _unread(_BALANCED, open_):
        for quantity, _ in _goals():
            yield match.start(), _statement(normal, match, quantity, "best", None)


@cache
def _bounds() -> tuple[tuple[re.Pattern[str], str, str, Convert], ...]:
    return tuple((_compiled(item.patterns), item.quantity, item.operator, item.convert) for item in BOUNDS)


@cache
def _goals() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((quantity, _compiled(patterns)) for quantity, patterns in GOALS)


def _compiled(patterns: Sequence[str]) -> re.Pattern[str]:
    """One expression of all; a group's name may occur once in it, so each alternative's names get its number."""
    numbered = [re.sub(r"\(\?P<([nu])>", rf"(?P<\g<1>{at}>", _expanded(pattern)) for at, pattern in enumerate(patterns)]
    return re.compile("|".join(f"(?:{pattern})" for pattern in numbered))


def _expanded(pattern: str) -> str:
    while (wider := _PLACEHOLDER.sub(lambda found: VOCABULARY[found[1]], pattern)) != pattern:
        pattern = wider
    return pattern


def _unread(pattern: re.Pattern[str], open_: list[str]) -> Iterator[re.Match[str]]:
    text = "".join(open_)
    for match in pattern.finditer(text):
        words = match.group().strip()
        if not words or _NEGATED.search(text[: match.start()]):
            continue
        open_[match.start() : match.end()] = "\n" * (match.end() - match.start())
        yield match


def _statement(
    normal: NormalText, match: re.Match[str], quantity: str, operator: str, value: float | None
) -> Statement:
    quote = normal.original(*match.span()).strip()
    return Statement.model_validate({"quote": quote, "quantity": quantity, "operator": operator, "value": value})


def _value(text: str | None) -> float:
    if text is None:
        return 0.0
    return NUMBERS[text] if text in NUMBERS else float(text.replace(",", ""))
