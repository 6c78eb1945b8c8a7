"""Recognise what a file asks (multiple choice, generation or plain text) and bring its rows into the canonical form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentic_compression.data.files import Row
from agentic_compression.errors import DatasetError

__all__ = ["LocalItems", "recognise"]

LocalKind = Literal["multiple_choice", "generation", "text"]

_QUESTION = ("question", "query", "prompt", "input")
_CHOICES = ("choices", "options", "endings")
_ANSWER = ("answer", "answerkey", "answer_key", "label", "gold", "target", "correct_answer", "output", "response")
_TEXT = ("text", "content", "document", "page")
_COLUMN_CHOICE = re.compile(r"(?:choice|option|answer)?[ _]?([a-j]|\d)")
_NEEDED = (
    "needed: question, choices, answer (multiple choice), question, answer (generation), or text; rename the columns"
)


@dataclass(frozen=True)
class LocalItems:
    """Items in the canonical form of :class:`agentic_compression.records.DatasetTask`."""

    kind: LocalKind
    items: list[dict[str, Any]]
    skipped: int = 0


@dataclass(frozen=True)
class _Columns:
    question: str | None
    choices: str | None
    choice_columns: tuple[str, ...]
    answer: str | None
    text: str | None
    id: str | None


def recognise(rows: Sequence[Row], source: str) -> LocalItems:
    """Recognise the kind from the columns and normalise every row.

    Args:
        rows: at least one row.
        source: the file's name, for errors.

    Raises:
        DatasetError: wrong columns, a malformed row, duplicate ids or answers that fit no choice.
    """
    columns = _columns({key for row in rows for key in row.values})
    has_choices = columns.choices is not None or len(columns.choice_columns) >= 2
    if columns.question and has_choices and columns.answer:
        return LocalItems("multiple_choice", _multiple_choice(rows, columns, source))
    if columns.question and columns.answer and not has_choices:
        return LocalItems("generation", _generation(rows, columns, source))
    if columns.text and columns.choices is None:
        return _texts(rows, columns, source)
    found = ", ".join(sorted({key for row in rows for key in row.values})[:20]) or "none"
    raise DatasetError(f"{source} has the columns {found}; {_NEEDED}")


def _columns(names: set[str]) -> _Columns:
    lower = {name.strip().lower(): name for name in sorted(names)}

    def find(candidates: tuple[str, ...]) -> str | None:
        return next((lower[name] for name in candidates if name in lower), None)

    return _Columns(
        question=find(_QUESTION),
        choices=find(_CHOICES),
        choice_columns=tuple(lower[name] for name in sorted(lower) if _COLUMN_CHOICE.fullmatch(name)),
        answer=find(_ANSWER),
        text=find(_TEXT),
        id=find(("id",)),
    )


def _multiple_choice(rows: Sequence[Row], columns: _Columns, source: str) -> list[dict[str, Any]]:
    ids = _ids(rows, columns.id, source)
    questions = [_required_text(row, columns.question, source) for row in rows]
    choices = [_choices(row, columns, source) for row in rows]
    readings = [_readings(row, columns.answer, labels, texts, source)
                for row, (labels, texts) in zip(rows, choices, strict=True)]  # fmt: skip
    reading = _agreed_reading(readings, source)
    items = []
    for row, name, question, (_, texts), found in zip(rows, ids, questions, choices, readings, strict=True):
        if reading not in found:
            listed = ", ".join(repr(text[:40]) for text in texts[:6])
            value = row.values.get(columns.answer or "")
            raise DatasetError(
                f"{source} {row.where}: the answer {value!r} is not among the choices {listed}; "
                f"give its index from 0 to {len(texts) - 1}, its letter or its text, the same way in every row"
            )
        items.append({"id": name, "question": question, "choices": texts, "answer": found[reading]})
    return items


def _choices(row: Row, columns: _Columns, source: str) -> tuple[list[str] | None, list[str]]:
    """Labels (None when there are none) and texts of a row's choices, checked."""
    labels, value = _listed_choices(row, columns, source)
    if not isinstance(value, list) or not all(_is_scalar(choice) for choice in value):
        got = repr(value)[:80]
        raise DatasetError(f"{source} {row.where}: choices must be a list of texts, got {got}; fix that item")
    texts = [str(choice).strip() for choice in value]
    if len(texts) < 2:
        raise DatasetError(
            f"{source} {row.where}: a question needs at least 2 choices, got {len(texts)}; fix that item"
        )
    if "" in texts:
        raise DatasetError(f"{source} {row.where}: choice {texts.index('')} is empty; fix that item")
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise DatasetError(f"{source} {row.where}: the choice {twice[:60]!r} appears twice; choices must be distinct")
    if labels is not None and len(labels) != len(texts):
        raise DatasetError(f"{source} {row.where}: {len(labels)} labels for {len(texts)} choices; fix that item")
    return labels, texts


def _listed_choices(row: Row, columns: _Columns, source: str) -> tuple[list[str] | None, Any]:
    """Choices as a list, ``{text: […], label: […]}``, ``{label: text}``, ``[{label, text}]``, or one column each."""
    if columns.choices is None:
        values = [row.values.get(name) for name in columns.choice_columns]
        while values and values[-1] in (None, ""):  # items may have fewer choices than the widest one
            values.pop()
        return None, values
    value = row.values.get(columns.choices)
    if isinstance(value, str):
        value = _parse_choices(value, row, source)
    if isinstance(value, Mapping):
        labels, texts = value.get("label"), value.get("text")
        if isinstance(labels, list) and isinstance(texts, list):
            return [str(label) for label in labels], texts
        return [str(label) for label in value], list(value.values())
    if isinstance(value, list) and value and all(isinstance(c, Mapping) and {"label", "text"} <= set(c) for c in value):
        return [str(choice["label"]) for choice in value], [choice["text"] for choice in value]
    return None, value


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _parse_choices(value: str, row: Row, source: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise DatasetError(
            f'{source} {row.where}: choices must be a list such as ["a", "b"], got {value[:60]!r}'
        ) from None


def _readings(row: Row, column: str | None, labels: list[str] | None, texts: list[str], source: str) -> dict[str, int]:
    """Every way in which this row's answer names a choice: as label, text, letter or index."""
    value = row.values.get(column or "")
    if value is None or value == "" or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DatasetError(
            f"{source} {row.where}: the answer in column {column!r} is missing, got {value!r}; fill it in"
        )
    text = str(value).strip()
    found: dict[str, int] = {}
    if isinstance(value, str) and labels and text in labels:
        found["label"] = labels.index(text)
    if isinstance(value, str) and text in texts:
        found["text"] = texts.index(text)
    if re.fullmatch(r"\(?[A-Za-z]\)?\.?", text) and (letter := ord(text.strip("().").upper()) - ord("A")) < len(texts):
        found["letter"] = letter
    if re.fullmatch(r"\d{1,4}(\.0)?", text) and int(float(text)) < len(texts):
        found["index"] = int(float(text))
    return found


def _agreed_reading(readings: Sequence[dict[str, int]], source: str) -> str:
    """The one reading of answers that fits the most rows; refused when two fit every row and mean different choices."""
    order = ("label", "text", "letter", "index")
    counts = {name: sum(name in found for found in readings) for name in order}
    best = max(order, key=lambda name: counts[name])
    for other in order[1:] if best != "label" else ():
        if other == best or not counts[other] == counts[best] == len(readings):
            continue
        if differing := sum(found[best] != found[other] for found in readings):
            raise DatasetError(
                f"{source}: the answers can be read as {best} or as {other}, which differ in {differing} rows; "
                "write them as letters A, B, C …"
            )
    return best


def _generation(rows: Sequence[Row], columns: _Columns, source: str) -> list[dict[str, Any]]:
    ids = _ids(rows, columns.id, source)
    return [
        {
            "id": name,
            "question": _required_text(row, columns.question, source),
            "answer": _required_text(row, columns.answer, source),
        }
        for row, name in zip(rows, ids, strict=True)
    ]


def _texts(rows: Sequence[Row], columns: _Columns, source: str) -> LocalItems:
    ids = _ids(rows, columns.id, source)
    items = []
    for row, name in zip(rows, ids, strict=True):
        value = row.values.get(columns.text or "")
        if value is not None and not isinstance(value, str):
            raise DatasetError(f"{source} {row.where}: text must be text, got {type(value).__name__}; fix that item")
        if value and value.strip():
            items.append({"id": name, "text": value})
    if not items:
        raise DatasetError(f"{source}: the column {columns.text!r} has no text in any of {len(rows)} rows; fill it in")
    return LocalItems("text", items, skipped=len(rows) - len(items))


def _required_text(row: Row, column: str | None, source: str) -> str:
    value = row.values.get(column or "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        got = "nothing" if value in (None, "") else repr(value)[:60]
        raise DatasetError(f"{source} {row.where}: column {column!r} must hold text, got {got}; fill it in")
    return value.strip()


def _ids(rows: Sequence[Row], column: str | None, source: str) -> list[str]:
    """The rows' ids; made from their position when the file has no ``id`` column."""
    if column is None:
        return [f"item-{number:06d}" for number in range(1, len(rows) + 1)]
    seen: dict[str, str] = {}
    for row in rows:
        value = row.values.get(column)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise DatasetError(
                f"{source} {row.where}: the id must be text or a whole number, got {value!r}; fill it in"
            )
        name = str(value).strip()
        if name in seen:
            raise DatasetError(
                f"{source} {row.where}: the id {name!r} is already used in {seen[name]}; ids must be unique"
            )
        seen[name] = row.where
    return list(seen)
