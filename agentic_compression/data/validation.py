"""Validate a dataset's canonical items with Great Expectations (called directly, nothing written, no analytics)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentic_compression.data.benchmarks import reading_of
from agentic_compression.data.files import read_jsonl
from agentic_compression.errors import DatasetError
from agentic_compression.records import DatasetSpec, DatasetTask, ValidationCheck, ValidationReport

__all__ = ["require_valid", "validate_dataset"]

_LONGEST_TEXT = 1_000_000  # characters of one item; longer is a file read as one item
_EXAMPLES = 3
_WARNING = " (warning)"


@dataclass(frozen=True)
class _Frame:
    """Rows of one kind over all tasks, with where each row stands."""

    kind: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Rule:
    """One expectation on a column; a warning is reported and does not fail the dataset."""

    expectation: Any
    column: str | None
    warning: bool = False


def validate_dataset(spec: DatasetSpec) -> ValidationReport:
    """Check ids, texts, choices and answers of every evaluated item.

    Great Expectations takes seconds to import; that happens here. A repeated item, and in published benchmarks a
    repeated choice, is a warning: its check is marked so and does not fail the report.

    Raises:
        DatasetError: when a stored file is missing or malformed.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations

    checks: list[ValidationCheck] = []
    for frame in _frames(spec):
        checks += _validate(great_expectations, frame)
    return ValidationReport(
        dataset=spec.dataset,
        success=all(check.success or check.expectation.endswith(_WARNING) for check in checks),
        checks=tuple(checks),
        items=sum(task.items for task in spec.tasks),
        library_version=f"great-expectations {great_expectations.__version__}",
    )


def require_valid(report: ValidationReport) -> None:
    """Raise for the first check that failed (warnings do not).

    Raises:
        DatasetError: what was expected, what was found, where, and what to do.
    """
    if report.success:
        return
    failed = [check for check in report.checks if not check.success and not check.expectation.endswith(_WARNING)]
    check = failed[0]
    where = f" of column {check.column!r}" if check.column else ""
    example = f", first: {check.examples[0]}" if check.examples else ""
    raise DatasetError(
        f"dataset {report.dataset} is not valid: {check.expectation}{where} failed for {check.unexpected_count} of "
        f"{report.items} items{example}; fix the items ({len(failed)} checks failed in all)"
    )


def _frames(spec: DatasetSpec) -> list[_Frame]:
    frames: dict[str, _Frame] = {}
    for task in spec.tasks:
        rows = read_jsonl(Path(task.path))
        if len(rows) != task.items:
            raise DatasetError(
                f"{task.path} has {len(rows)} items and its record says {task.items}; resolve the dataset again"
            )
        for row in rows:
            kind, values = _columns(task, row.values)
            frame = frames.setdefault(f"{kind}:{task.kind}", _Frame(kind if task.kind != "benchmark" else f"{kind}*"))
            frame.rows.append({"id": values.pop("id"), "task": task.name, **values})
            frame.places.append(f"{task.name} {row.where}")
    return list(frames.values())


def _columns(task: DatasetTask, item: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of an item and its values as columns."""
    name = f"{task.name}/{item['id']}" if item.get("id") is not None else None
    if task.kind == "text":
        return "text", {"id": name, "text": _stripped(item.get("text"))}
    if task.kind == "benchmark":
        assert task.lm_eval_task is not None
        reading = reading_of(task.lm_eval_task, item)
        question, choices, index, answer = reading.question, reading.choices, reading.answer_index, reading.answer
        kind = "choice" if choices else "generation"
    else:
        kind = "choice" if task.kind == "multiple_choice" else "generation"
        question, choices = item.get("question", ""), tuple(item.get("choices") or ())
        index = item["answer"] if kind == "choice" else 0
        answer = "" if kind == "choice" else item.get("answer", "")
    if kind == "generation":
        return kind, {"id": name, "question": _stripped(question), "answer": _stripped(answer)}
    return kind, {
        "id": name,
        "question": _stripped(question),
        "item": "\n".join((question, *choices)),
        "choice_count": len(choices),
        "distinct_choices": len(set(choices)),
        "shortest_choice": min((len(choice.strip()) for choice in choices), default=0),
        "answer_index": index,
    }


def _stripped(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) else None


def _validate(gx: Any, frame: _Frame) -> list[ValidationCheck]:
    import pandas
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # It sets its own level to INFO and tells of a temporary folder at every context.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("items")
        .add_dataframe_asset("items")
        .add_batch_definition_whole_dataframe("items")
        .get_batch({"dataframe": pandas.DataFrame(frame.rows)})
    )
    checks = []
    for rule in _rules(gx.expectations, frame.kind):
        result = batch.validate(rule.expectation, result_format="COMPLETE")
        checks.append(_check(rule, result, frame.places))
    return checks


def _rules(e: Any, kind: str) -> Sequence[_Rule]:
    published = kind.endswith("*")
    content = "text" if kind == "text" else "question"
    whole = "item" if kind.startswith("choice") else content
    rules = [
        _Rule(e.ExpectTableRowCountToBeBetween(min_value=1), None),
        _Rule(e.ExpectColumnValuesToNotBeNull(column="id"), "id"),
        _Rule(e.ExpectColumnValuesToBeUnique(column="id"), "id"),
        _Rule(e.ExpectColumnValuesToNotBeNull(column=content), content),
        _Rule(e.ExpectColumnValueLengthsToBeBetween(column=content, min_value=1, max_value=_LONGEST_TEXT), content),
        _Rule(e.ExpectCompoundColumnsToBeUnique(column_list=["task", whole]), whole, warning=True),
    ]
    if kind.startswith("generation"):
        rules += [
            _Rule(e.ExpectColumnValuesToNotBeNull(column="answer"), "answer"),
            _Rule(e.ExpectColumnValueLengthsToBeBetween(column="answer", min_value=1), "answer"),
        ]
    if kind.startswith("choice"):
        rules += [
            _Rule(e.ExpectColumnValuesToBeBetween(column="choice_count", min_value=2), "choice_count"),
            _Rule(e.ExpectColumnValuesToBeBetween(column="shortest_choice", min_value=1), "shortest_choice"),
            _Rule(
                e.ExpectColumnPairValuesToBeEqual(column_A="distinct_choices", column_B="choice_count"),
                "distinct_choices",
                warning=published,
            ),
            _Rule(e.ExpectColumnValuesToBeBetween(column="answer_index", min_value=0), "answer_index"),
            _Rule(
                e.ExpectColumnPairValuesAToBeGreaterThanB(column_A="choice_count", column_B="answer_index"),
                "answer_index",
            ),
        ]
    return rules


def _check(rule: _Rule, result: Any, places: Sequence[str]) -> ValidationCheck:
    found = result.result
    indices = found.get("unexpected_index_list") or []
    values = found.get("unexpected_list") or []
    examples = tuple(
        f"{places[index]}: {_shorten(values[position] if position < len(values) else None)}"
        for position, index in enumerate(indices[:_EXAMPLES])
    )
    return ValidationCheck(
        expectation=rule.expectation.expectation_type + (_WARNING if rule.warning else ""),
        column=rule.column,
        success=bool(result.success),
        unexpected_count=int(found.get("unexpected_count") or 0),
        examples=examples,
    )


def _shorten(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("item", next(iter(value.values()), None))
    text = ", ".join(str(part) for part in value) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
