"""From statements to a wish, whoever read them: checked against the text and against what can be true."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from agentic_compression.agent.wish import Bound, Goal, Statement, Wish
from agentic_compression.records import Constraint

__all__ = ["NormalText", "wish_of"]

_NAMED_WEIGHT = 0.8
_RATIOS = {"accuracy_ratio", "latency_ratio", "memory_ratio", "co2_ratio"}
_GOALS: tuple[Goal, ...] = get_args(Goal)
_PAIRS = (
    "準准確确損损過过個个點点內内時时鐘钟記记憶忆體体遲迟氣气壓压縮缩減减無无於于條条達达約约數数據据電电儘尽盡尽優优質质維维間间應应請请"
    "幫帮給给選选與与並并實实驗验輪轮兩两從从總总預预範范圍围檔档較较對对標标還还會会動动擇择權权衡衡響响讓让為为這这該该種种運运顯显佔占"
    "願愿須须級级處处進进將将離离積积環环節节後后術术開开關关題题試试資资僅仅幾几貳二叁三倆俩單单擴扩額额產产費费訓训練练務务樣样"
)
_SIMPLE = str.maketrans(_PAIRS[::2], _PAIRS[1::2])
_BREAK = re.compile(r"[,;。;、!?\n]|\.(?!\d)|\b(?:but|and|while|with)\b|(?:但是?|而且|并且|同时)")
_FILLERS = re.compile(
    r"\b(?:please|i|we|want|would|like|need|wish|to|the|a|an|my|our|me|it|its|this|that|is|are|be|should|must|can|could"
    r"|you|find|get|give|make|show|have|has|keeps?|keeping|that|while|with|and|but|or|also|as|of|in|on|for|at|by|model|models"
    r"|version|versions|possible|possibly|still|so|then|overall|result|results|one|let|us|go|compress|compressed"
    r"|compression|using|use|spend|spending|emit|emitting|subject|given|provided|where|whose|which|than|there)\b"
    r"|[我要想请的模型并且和与及是在给个一到让把它能可以需要希望帮我们压缩找出求选尽量了得下条件同时但就为总共也请之其]"
)


class NormalText:
    """A text in one form for matching: full width to half, small letters, Traditional to Simplified characters.

    Spans in ``normal`` are told in the original's characters by ``original``.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        normal: list[str] = []
        self._places: list[int] = []
        for at, char in enumerate(text):
            piece = unicodedata.normalize("NFKC", char).lower().translate(_SIMPLE)
            piece = "\n" if char == "\n" else " " if piece.isspace() else piece
            if piece == " " and normal and normal[-1] == " ":  # so that no pattern tries every split of a long gap
                continue
            normal += piece
            self._places += [at] * len(piece)
        self.normal = "".join(normal)

    def original(self, start: int, end: int) -> str:
        """The original's characters of a span."""
        if start >= end:
            return ""
        return self.text[self._places[start] : self._places[end - 1] + 1]

    def find(self, quote: str) -> tuple[int, int] | None:
        """Where a quotation stands, whatever its spaces; None where it does not."""
        words = NormalText(quote).normal.split()
        if not words:
            return None
        found = re.search(r"\s*".join(re.escape(word) for word in words), self.normal)
        return found.span() if found else None


def wish_of(
    text: str,
    statements: Iterable[Statement],
    reader: Literal["rules", "language model"],
    also_missed: Sequence[str] = (),
    note: str = "",
) -> Wish:
    """A wish from statements; those that cannot be meant, or that the text does not say, count as not understood.

    Args:
        text: the objective.
        statements: what it was read to say.
        reader: who read it.
        also_missed: parts that the reader itself did not understand.
        note: kept with the wish.
    """
    normal = NormalText(text)
    held: list[Statement] = []
    spans: list[tuple[int, int]] = []
    doubtful: list[str] = []
    for statement in statements:
        span = normal.find(statement.quote)
        problem = "the text does not say it" if span is None else _problem_with(statement)
        if span is None or problem:
            doubtful.append(f"{statement.quote} ({problem})")
        else:
            held.append(statement)
        if span is not None:
            spans.append(span)
    missed = [*also_missed, *(part for part in _left_over(normal, spans) if part not in also_missed)]
    return Wish(
        text=text,
        constraints=tuple(
            Constraint(quantity=item.quantity, operator=item.operator, bound=item.value)
            for item in held
            if item.operator != "best"
            and item.value is not None
            and item.quantity not in {*_RATIOS, "carbon_budget_grams", "budget_hours", "episodes"}
        ),
        relative=tuple(
            Bound.model_validate({"quantity": item.quantity, "operator": item.operator, "bound": item.value})
            for item in held
            if item.quantity in _RATIOS
        ),
        weights=_weights([item for item in held if item.operator == "best"]),
        carbon_budget_grams=_least(held, "carbon_budget_grams"),
        budget_hours=_least(held, "budget_hours"),
        episodes=int(most) if (most := _least(held, "episodes")) else None,
        understood=tuple((item.quote, meaning_of(item)) for item in held),
        not_understood=(*doubtful, *missed),
        reader=reader,
        note=note,
    )


def meaning_of(statement: Statement) -> str:
    """A statement in plain words."""
    value = statement.value or 0.0
    if statement.operator == "best":
        return f"goal: {_GOAL_NAMES[statement.quantity]}"
    side = "at most" if statement.operator == "<=" else "at least"
    bound = f"{statement.quantity}{statement.operator}{value:g}"
    told = _MEANINGS.get(statement.quantity)
    return f"{side} {told(value)} ({bound})" if told else bound


def _ratio_of(what: str) -> Callable[[float], str]:
    return lambda value: f"{value:.3g} of the baseline's {what}"


_GOAL_NAMES = {
    "accuracy": "highest accuracy",
    "latency_ms": "lowest latency",
    "memory_gb": "least memory",
    "model_size_gb": "smallest on disk",
    "co2_grams": "least CO2 in use",
}
_MEANINGS: dict[str, Callable[[float], str]] = {
    "accuracy": lambda v: f"{v:.1%} of the items right",
    "accuracy_drop": lambda v: f"{100 * v:g} percentage points of accuracy lost",
    "accuracy_ratio": _ratio_of("accuracy"),
    "size_ratio": _ratio_of("size on disk"),
    "latency_ratio": _ratio_of("latency"),
    "memory_ratio": _ratio_of("memory"),
    "co2_ratio": _ratio_of("CO2 in use"),
    "latency_ms": lambda v: f"{v:g} ms a request",
    "memory_gb": lambda v: f"{1000 * v:g} MB of memory in use",
    "model_size_gb": lambda v: f"{1000 * v:g} MB on disk",
    "co2_grams": lambda v: f"{v:g} g CO2e per 1,000 requests",
    "carbon_budget_grams": lambda v: f"{v:g} g CO2e for the whole study",
    "budget_hours": lambda v: f"{v:.3g} h of work for the whole study",
    "episodes": lambda v: f"{v:g} compressed episodes",
}


def _problem_with(statement: Statement) -> str | None:
    """Why nobody can mean it, or None."""
    name, value = statement.quantity, statement.value
    if statement.operator == "best":
        return None if name in _GOALS else f"{name} is no objective"
    fraction = name in {"accuracy", "accuracy_drop", "accuracy_ratio"}
    budget = name in {"carbon_budget_grams", "budget_hours", "episodes"}
    checks = (
        (value is None, "it names no number"),
        (fraction and not 0 <= (value or 0) <= 1, "it must be from 0 to 100 %"),
        (not value and name != "accuracy_drop", "it must be greater than 0"),
        ((value or 0) < 0, "it must be greater than 0"),
        (budget and statement.operator != "<=", "a budget is an upper bound"),
        (name == "episodes" and (value or 0) < 1, "at least one episode"),
    )
    return next((problem for wrong, problem in checks if wrong), None)


def _weights(goals: Sequence[Statement]) -> dict[Goal, float]:
    """Named goals share 0.8, the others the rest; all the same where none or every one is named."""
    named = {item.quantity for item in goals}
    if not named or named >= set(_GOALS):
        return {name: 1 / len(_GOALS) for name in _GOALS}
    rest = len(_GOALS) - len(named)
    return {name: _NAMED_WEIGHT / len(named) if name in named else (1 - _NAMED_WEIGHT) / rest for name in _GOALS}


def _least(held: Sequence[Statement], quantity: str) -> float | None:
    return min((item.value for item in held if item.quantity == quantity and item.value is not None), default=None)


def _left_over(normal: NormalText, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The clauses of what no statement was read from, without those of filling words alone."""
    open_ = list(normal.normal)
    for start, end in spans:
        open_[start:end] = "\n" * (end - start)
    rest, found, begin = "".join(open_), [], 0
    for cut in [*_BREAK.finditer(rest), None]:
        start, end = begin, cut.start() if cut else len(rest)
        begin = cut.end() if cut else end
        if re.search(r"\w|[%<>=]", _FILLERS.sub("", rest[start:end])):
            found.append(" ".join(normal.original(start, end).split()))
    return found
