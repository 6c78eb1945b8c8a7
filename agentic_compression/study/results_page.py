"""The report on a study's results as one self-contained HTML page.

Great Expectations' own page loads its styles, scripts and logo from ten servers; this one loads nothing.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from agentic_compression.records import Excluded, ValidationCheck
from agentic_compression.study.results_suite import Finding

__all__ = ["results_page"]

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;"
    "vertical-align:top}.held{color:#176f2c}.failed{color:#b3261e}.warned{color:#8a5a00}code{font-size:90%}"
)
_SHOWN = {"excluded": "failed", "withheld": "failed", "warning": "warned"}


def results_page(
    study: str,
    checks: Sequence[ValidationCheck],
    outcome: tuple[Sequence[Excluded], Mapping[int, str], Sequence[Finding]],
    library_version: str,
) -> str:
    """The page; every text that comes from data is escaped.

    Args:
        study: its name.
        checks: every expectation.
        outcome: the episodes that are not ranked, those that are not promoted, and everything found.
        library_version: of what checked.
    """
    not_ranked, withheld, findings = outcome
    title = f"Results of {html.escape(study)}"
    rows = [(item.episode, "excluded", item.reason) for item in not_ranked]
    rows += [(episode, "withheld", reason) for episode, reason in withheld.items()]
    rows += [(item.episode, "warning", item.reason) for item in findings if item.consequence == "warning"]
    verdict = ("failed", f"{len({*withheld, *(item.episode for item in not_ranked)})} episodes may not be promoted")
    if not withheld and not not_ranked:
        verdict = ("held", "every measured episode may be promoted")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f'<p><strong class="{verdict[0]}">{verdict[1]}</strong>: {len(checks)} checks, '
        f"{html.escape(library_version)}</p>\n{_episodes(rows)}"
        "<h2>Checks</h2>\n<table><thead><tr><th>check</th><th>column</th><th>result</th><th>unexpected</th>"
        f"<th>examples</th></tr></thead><tbody>\n{''.join(_check(check) for check in checks)}</tbody></table>\n"
        "</body></html>\n"
    )


def _episodes(rows: Sequence[tuple[int, str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(
        f'<tr><td>{episode}</td><td class="{_SHOWN[consequence]}">{consequence}</td>'
        f"<td>{html.escape(reason)}</td></tr>\n"
        for episode, consequence, reason in sorted(rows)
    )
    return (
        "<h2>Episodes</h2>\n<p>Excluded: neither ranked nor promoted. Withheld: ranked, not promoted.</p>\n"
        f"<table><thead><tr><th>episode</th><th>consequence</th><th>reason</th></tr></thead><tbody>\n{body}</tbody></table>\n"
    )


def _check(check: ValidationCheck) -> str:
    held = ("held", "held") if check.success else ("failed", "failed")
    if not check.success and check.expectation.endswith("(warning)"):
        held = ("warned", "warning")
    examples = "<br>".join(html.escape(example) for example in check.examples)
    return (
        f"<tr><td><code>{html.escape(check.expectation)}</code></td><td>{html.escape(check.column or '')}</td>"
        f'<td class="{held[0]}">{held[1]}</td><td>{check.unexpected_count}</td><td>{examples}</td></tr>\n'
    )
