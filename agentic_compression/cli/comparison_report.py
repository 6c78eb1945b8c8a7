"""A comparison as Markdown, as one HTML page, and on the terminal: the same tables three times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentic_compression.records import Comparison, Estimate, Flips

__all__ = ["as_html", "as_markdown", "print_comparison"]

_COSTS = {
    "latency_ms": "latency of a request",
    "ttft_ms": "time to the first token",
    "memory_gb": "memory",
    "model_size_gb": "size",
    "joules_per_request": "energy of a request",
    "co2_grams": "CO2 of a request",
}
_TASKS = (
    "task",
    "items",
    "baseline",
    "candidate",
    "difference, points",
    "95 % interval",
    "right→wrong",
    "wrong→right",
    "p",
)
_Table = tuple[Sequence[str], list[tuple[str, ...]]]


def as_markdown(compared: Comparison) -> str:
    """The report as Markdown; names from outside cannot form tables, links, images or HTML."""
    lines = [f"# {_plain(compared.candidate)} beside {_plain(compared.baseline)}", "", f"**{compared.summary}**", ""]
    for heads, rows in _tables(compared):
        lines += [
            _line(heads),
            _line(["---"] * len(heads)),
            *(_line([_plain(cell) for cell in row]) for row in rows),
            "",
        ]
    lines += [*_notes(compared), ""]
    if compared.warnings:
        lines += ["To be kept in mind:", "", *(f"- {_plain(warning)}" for warning in compared.warnings), ""]
    return "\n".join(lines)


def as_html(compared: Comparison) -> str:
    """The report as one page that loads nothing; every text is escaped."""
    from agentic_compression.frontier.page import STYLE

    title = escape(f"{compared.candidate} beside {compared.baseline}")
    tables = "".join(
        f'<section><div class="scroll">{_html_table(*table)}</div></section>' for table in _tables(compared)
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in _notes(compared))
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in compared.warnings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style></head><body><main><header><h1>{title}</h1>"
        f"<p>{escape(compared.summary)}</p></header>{tables}<footer>{notes}"
        + (f"<p>To be kept in mind:</p><ul>{warnings}</ul>" if warnings else "")
        + "</footer></main></body></html>\n"
    )


def print_comparison(compared: Comparison) -> None:
    """The report on the terminal."""
    from rich.markup import escape as plain
    from rich.table import Table

    from agentic_compression.cli.live import wide_console

    console = wide_console()
    for heads, rows in _tables(compared):
        table = Table(*heads)
        for row in rows:
            table.add_row(*map(plain, row))
        console.print(table)
    for note in _notes(compared):
        console.print(note, soft_wrap=True, markup=False, highlight=False)
    for warning in compared.warnings:
        console.print(f"[yellow]warning:[/] {plain(warning)}", soft_wrap=True, highlight=False)
    style = {"better": "green", "worse": "red", "indistinguishable": "bold"}[compared.verdict]
    console.print(compared.summary, style=style, soft_wrap=True, markup=False, highlight=False)


def _tables(compared: Comparison) -> list[_Table]:
    return [table for table in (_tasks(compared), _costs(compared)) if table[1]]


def _tasks(compared: Comparison) -> _Table:
    rows: list[tuple[str, ...]] = [
        (
            f"{task.task} ({task.metric})",
            f"{task.difference.n:,}",
            f"{task.baseline:.4f}",
            f"{task.candidate:.4f}",
            *_difference(task.difference),
            *_changed(task.flips),
            f"{task.p_value:.3g}",
        )
        for task in compared.tasks
    ]
    everything = ("all, weighted", f"{compared.accuracy.n:,}", "", "", *_difference(compared.accuracy))
    rows.append((*everything, *_changed(compared.flips), f"{compared.p_value:.3g}"))
    return _TASKS, rows


def _costs(compared: Comparison) -> _Table:
    rows: list[tuple[str, ...]] = [
        (words, f"{ratio.value:.3f}", f"{ratio.low:.3f} … {ratio.high:.3f}" if ratio.low < ratio.high else _width(name))
        for name, words in _COSTS.items()
        if (ratio := compared.ratios.get(name)) is not None
    ]
    return ("cost", "candidate / baseline", "95 % interval"), rows


def _width(name: str) -> str:
    """What to say of a ratio without a width: only a size is known exactly."""
    return "exact" if name == "model_size_gb" else "no spread seen"


def _difference(difference: Estimate) -> tuple[str, str]:
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.value:+.2f}", f"{low:+.2f} … {high:+.2f}"


def _changed(flips: Flips | None) -> tuple[str, str]:
    return ("–", "–") if flips is None else (str(flips.right_to_wrong), str(flips.wrong_to_right))


def _notes(compared: Comparison) -> list[str]:
    notes = []
    if compared.divergence is not None:
        found = compared.divergence
        notes.append(
            f"Divergence from the baseline: {found.kl.value:.4g} nats a token (95 % interval {found.kl.low:.4g} … "
            f"{found.kl.high:.4g}), top-1 agreement {found.top1_agreement.value:.2%}, over {found.tokens:,} tokens of "
            f"{found.sequences} sequences, top {found.top_k}."
        )
    if compared.flips is not None:
        notes.append(f"Changed answers: {compared.flips.share:.2%} of {compared.flips.n:,} items.")
    if compared.detectable_drop is not None and compared.verdict == "indistinguishable":
        notes.append(
            f"These items show a difference of {100 * compared.detectable_drop:.2f} points in 80 of 100 cases; "
            f"items: {compared.split}."
        )
    return notes


def _html_table(heads: Sequence[str], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
