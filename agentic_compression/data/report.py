"""A validation report as one self-contained HTML page, or as JSON."""

from __future__ import annotations

import html
from pathlib import Path

from agentic_compression.records import ValidationCheck, ValidationReport
from agentic_compression.storage import write_atomically, write_record

__all__ = ["report_html", "write_report"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;"
    "vertical-align:top}.held{color:#176f2c}.failed{color:#b3261e}.warned{color:#8a5a00}code{font-size:90%}"
)


def write_report(report: ValidationReport, path: Path) -> None:
    """Write the report atomically: JSON when the path ends in ``.json``, otherwise HTML."""
    if path.suffix == ".json":
        write_record(path, report)
    else:
        write_atomically(path, report_html(report))


def report_html(report: ValidationReport) -> str:
    """The page; every text that comes from data is escaped."""
    title = f"Validation of {html.escape(report.dataset)}"
    verdict = ("held", "valid") if report.success else ("failed", "not valid")
    rows = "\n".join(_row(check) for check in report.checks)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f'<p><strong class="{verdict[0]}">{verdict[1]}</strong>: {report.items} items, {len(report.checks)} checks, '
        f"{html.escape(report.library_version)}</p>\n"
        "<table><thead><tr><th>check</th><th>column</th><th>result</th><th>unexpected</th><th>examples</th></tr></thead>"
        f"<tbody>\n{rows}\n</tbody></table>\n</body></html>\n"
    )


def _row(check: ValidationCheck) -> str:
    if check.success:
        result = ("held", "held")
    elif check.expectation.endswith("(warning)"):
        result = ("warned", "warning")
    else:
        result = ("failed", "failed")
    examples = "<br>".join(html.escape(example) for example in check.examples)
    return (
        f"<tr><td><code>{html.escape(check.expectation)}</code></td><td>{html.escape(check.column or '')}</td>"
        f'<td class="{result[0]}">{result[1]}</td><td>{check.unexpected_count}</td><td>{examples}</td></tr>'
    )
