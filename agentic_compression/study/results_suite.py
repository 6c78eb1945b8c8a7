"""The Great Expectations suite over a study's results table."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentic_compression.records import Record, ValidationCheck
from agentic_compression.study.results_table import ResultRow, unexplained_bytes

__all__ = ["SUITE_VERSION", "Consequence", "Finding", "check_rows"]

SUITE_VERSION = 2
"""Raised whenever an expectation, or what a row holds, changes: a report made before is not taken for a new one."""

Consequence = Literal["excluded", "withheld", "warning"]
"""``excluded``: neither ranked nor promoted. ``withheld``: ranked, not promoted. ``warning``: only reported."""

_MOST = sys.float_info.max
_EXAMPLES = 3


class Finding(Record):
    """One row that did not meet one expectation."""

    episode: int
    consequence: Consequence
    expectation: str
    reason: str


@dataclass(frozen=True)
class _Rule:
    """One expectation on a frame's column, what follows where it fails, and how to say so of a row."""

    expectation: Any
    column: str
    consequence: Consequence
    words: str


@dataclass(frozen=True)
class _Frame:
    name: str
    rows: list[dict[str, Any]]
    rules: list[_Rule]


def check_rows(rows: Sequence[ResultRow]) -> tuple[tuple[ValidationCheck, ...], tuple[Finding, ...], str]:
    """Run every expectation on every row.

    The first row is what the others are compared with: the baseline, in a study that has one. Great Expectations takes
    seconds to import; that happens here, once in a process.

    Returns:
        The outcome of every expectation, what failed row by row, and the library's version.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # It sets its own level to INFO and tells of a temporary folder at every context.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    checks: list[ValidationCheck] = []
    findings: list[Finding] = []
    for frame in _frames(rows, gx.expectations):
        if not frame.rows:
            continue
        for rule, result in zip(frame.rules, _validate(gx, context, frame), strict=True):
            found = _findings(frame, rule, result)
            findings += found
            checks.append(
                ValidationCheck(
                    expectation=_title(rule),
                    column=f"{frame.name}.{rule.column}",
                    success=bool(result.success),
                    unexpected_count=len(found),
                    examples=tuple(f"episode {item.episode}: {item.reason}" for item in found[:_EXAMPLES]),
                )
            )
    return tuple(checks), tuple(findings), f"great-expectations {gx.__version__}"


def _validate(gx: Any, context: Any, frame: _Frame) -> list[Any]:
    """One result a rule, in the order of the rules."""
    import pandas

    batch = (
        context.data_sources.add_pandas(frame.name)
        .add_dataframe_asset(frame.name)
        .add_batch_definition_whole_dataframe(frame.name)
        .get_batch({"dataframe": pandas.DataFrame(frame.rows)})
    )
    for number, rule in enumerate(frame.rules):
        rule.expectation.meta = {"rule": number}
    suite = gx.ExpectationSuite(name=frame.name, expectations=[rule.expectation for rule in frame.rules])
    results = batch.validate(suite, result_format="COMPLETE").results
    broken = [result for result in results if result.exception_info.get("raised_exception")]
    if broken:  # an expectation that could not be evaluated must not pass for one that held
        raise RuntimeError(f"Great Expectations could not check {broken[0].expectation_config.type} on {frame.name}")
    return sorted(results, key=lambda result: int(result.expectation_config.meta["rule"]))


def _findings(frame: _Frame, rule: _Rule, result: Any) -> list[Finding]:
    failed = [frame.rows[index] for index in result.result.get("unexpected_index_list") or []]
    return [
        Finding(
            episode=row["episode"],
            consequence=rule.consequence,
            expectation=rule.expectation.expectation_type,
            reason=rule.words.format(**row),
        )
        for row in failed
    ]


def _title(rule: _Rule) -> str:
    kind = str(rule.expectation.expectation_type)
    return kind if rule.consequence == "excluded" else f"{kind} ({rule.consequence})"


def _frames(rows: Sequence[ResultRow], e: Any) -> list[_Frame]:
    numbers = [
        {"episode": row.episode, "quantity": name, "value": value, "low": low, "high": high}
        for row in rows
        for name, (value, low, high) in row.numbers.items()
    ]
    return [
        _Frame("numbers", numbers, _number_rules(e)),
        _Frame("sameness", _compared(rows), _sameness_rules(e)),
        _Frame("candidates", _candidates(rows), _candidate_rules(e)),
    ]


def _number_rules(e: Any) -> list[_Rule]:
    finite = "{quantity} and its interval must be finite numbers, got {value} in [{low}, {high}]"
    around = "the interval of {quantity} must contain its value, got {value} and [{low}, {high}]"
    rules = []
    for column in ("value", "low", "high"):
        between = e.ExpectColumnValuesToBeBetween(column=column, min_value=-_MOST, max_value=_MOST)
        rules += [
            _Rule(e.ExpectColumnValuesToNotBeNull(column=column), column, "excluded", finite),
            _Rule(between, column, "excluded", finite),
        ]
    for larger, smaller in (("value", "low"), ("high", "value")):
        pair = e.ExpectColumnPairValuesAToBeGreaterThanB(column_A=larger, column_B=smaller, or_equal=True)
        rules.append(_Rule(pair, f"{larger}, {smaller}", "withheld", around))
    return rules


def _sameness_rules(e: Any) -> list[_Rule]:
    pair = e.ExpectColumnPairValuesToBeEqual(column_A="value", column_B="baseline")
    words = "{quantity} must be the baseline's {baseline!r}, got {value!r}"
    return [_Rule(pair, "value, baseline", "excluded", words)]


def _candidate_rules(e: Any) -> list[_Rule]:
    return [*_range_rules(e), *_fidelity_rules(e), *_identity_rules(e), *_size_rules(e)]


def _range_rules(e: Any) -> list[_Rule]:
    between = e.ExpectColumnValuesToBeBetween
    words = "accuracy must be in [0, 1], got {accuracy}"
    rules = [_Rule(between(column="accuracy", min_value=0, max_value=1), "accuracy", "excluded", words)]
    for name, unit in (("latency_ms", "ms"), ("memory_gb", "GB"), ("model_size_gb", "GB"), ("co2_grams", "g")):
        words = f"{name} must be above 0 {unit}, got {{{name}}}"
        rules.append(_Rule(between(column=name, min_value=0, strict_min=True), name, "excluded", words))
    return rules


def _fidelity_rules(e: Any) -> list[_Rule]:
    def among(column: str, allowed: object, consequence: Consequence, words: str) -> _Rule:
        return _Rule(e.ExpectColumnValuesToBeInSet(column=column, value_set=[allowed]), column, consequence, words)

    return [
        among("status", "succeeded", "excluded", "only a succeeded episode is a candidate, got {status}"),
        among("rung", 3, "excluded", "a candidate is measured in full, got one that did not pass rung {rung}"),
        among("missing", "", "withheld", "the record has no {missing}"),
        among("settled", "yes", "warning", "request times had not settled when they were measured"),
    ]


def _identity_rules(e: Any) -> list[_Rule]:
    digests, sizes = ("measured_digest", "checkpoint_digest"), ("measured_bytes", "checkpoint_bytes")

    def equal(columns: tuple[str, str], words: str) -> _Rule:
        pair = e.ExpectColumnPairValuesToBeEqual(column_A=columns[0], column_B=columns[1])
        return _Rule(pair, ", ".join(columns), "withheld", words)

    return [
        _Rule(e.ExpectColumnValuesToBeUnique(column="episode"), "episode", "withheld", "the episode is there twice"),
        _Rule(
            e.ExpectColumnValueLengthsToBeBetween(column="checkpoint_digest", min_value=1),
            "checkpoint_digest",
            "withheld",
            "the checkpoint must have a content digest, got none",
        ),
        equal(digests, "what was measured must be what is stored, got {measured_digest!r} for {checkpoint_digest!r}"),
        equal(sizes, "the stored checkpoint has {checkpoint_bytes:,} bytes and the measured one {measured_bytes:,}"),
        _Rule(
            e.ExpectColumnValuesToBeInSet(column="twin", value_set=[""]),
            "twin",
            "withheld",
            "the same checkpoint gave other numbers in {twin}",
        ),
    ]


def _size_rules(e: Any) -> list[_Rule]:
    return [
        _Rule(
            e.ExpectColumnValuesToBeBetween(column="unexplained_bytes", max_value=0),
            "unexplained_bytes",
            "withheld",
            "it is {unexplained_bytes:,} bytes larger than the baseline and nothing stored says why",
        ),
        _Rule(
            e.ExpectColumnValuesToBeInSet(column="growth", value_set=[""]),
            "growth",
            "warning",
            "it is larger than the baseline: {growth}",
        ),
    ]


def _compared(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """One row an episode and quantity; a quantity that the baseline lacks is the engine's own and not compared."""
    baseline = rows[0].sameness if rows else {}
    return [
        {"episode": row.episode, "quantity": name, "value": row.sameness.get(name, ""), "baseline": expected}
        for row in rows
        if row.sameness
        for name, expected in baseline.items()
        if name in row.sameness or not name.startswith("reported ")
    ]


def _candidates(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    names = ("accuracy", "latency_ms", "memory_gb", "model_size_gb", "co2_grams")
    found = []
    for row in rows:
        values = row.model_dump(exclude={"numbers", "sameness", "stable", "key", "strategy", "growth_explained"})
        extra = unexplained_bytes(row, rows[0].checkpoint_bytes)
        grew = row.checkpoint_bytes > rows[0].checkpoint_bytes and not extra
        values |= {name: row.numbers.get(name, (float("nan"),))[0] for name in names}
        values |= {
            "unexplained_bytes": extra,
            "growth": (row.growth_explained or "configuration and manifest") if grew else "",
            "twin": _twin(row, rows, names),
            "settled": "yes" if row.stable else "no",
        }
        found.append(values)
    return found


def _twin(row: ResultRow, rows: Sequence[ResultRow], names: Sequence[str]) -> str:
    """Episodes of the same checkpoint whose interval of some objective does not meet this row's."""
    found = []
    for other in rows:
        if (
            other.episode == row.episode
            or not row.checkpoint_digest
            or other.checkpoint_digest != row.checkpoint_digest
        ):
            continue
        common = [name for name in names if name in row.numbers and name in other.numbers]
        apart = [name for name in common if _apart(row.numbers[name], other.numbers[name])]
        if apart:
            found.append(f"episode {other.episode} ({', '.join(apart)})")
    return "; ".join(found)


def _apart(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    """Whether two intervals ``(value, low, high)`` have no number in common."""
    return max(one[1], other[1]) > min(one[2], other[2])
