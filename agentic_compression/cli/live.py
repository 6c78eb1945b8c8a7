"""The live view of a running study: phase with progress and ETA, the episode, the frontier so far."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from agentic_compression.cli.ending import closing_line
from agentic_compression.records import Strategy

if TYPE_CHECKING:
    from agentic_compression.cli.ending import AliasMove
    from agentic_compression.records import EpisodeRecord, FinalResults, FrontierDocument, StudyConfig
    from agentic_compression.study import Workbench

__all__ = ["LiveView", "brief", "frontier_table", "plain_reason", "wide_console"]

_SHOWN = 12
_PIPE_WIDTH = 160
_LEAST_GB = 10
"""Sizes from here on read better in GB."""
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?) GB\b")
_LEGEND = "◆ best compromise of this study (its knee); 'acf registry list' has the champion"
_RUNGS = {
    "0": "told from its size and costs",
    "1": "told from a short look at it",
    "2": "told from the first questions",
    "3": "told part-way through the questions",
}


class LiveView:
    """Draws on standard error, so that standard output stays free for ``--json``."""

    def __init__(self, study: StudyConfig, *, detailed: bool, quiet: bool = False) -> None:
        self.study = study
        self._detailed = detailed
        self._console = wide_console(stderr=True, quiet=quiet)
        self._records: list[EpisodeRecord] = []
        self._document: FrontierDocument | None = None
        self._begun = time.monotonic()
        self._episode_begun = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
        self._study_task = self._progress.add_task("episodes", total=study.episodes + 1)
        self._work_task = self._progress.add_task("", total=None, visible=False)

    def say(self, text: str) -> None:
        """Print one line that stays."""
        if text:
            self._console.print(escape(text), highlight=False)

    def phase(self, text: str) -> None:
        """Print what is being prepared before the view is up."""
        self._console.print(f"[dim]{escape(text)}[/]")

    @contextmanager
    def attached(self, bench: Workbench) -> Iterator[None]:
        """Show the view while the study runs."""
        bench.announce.listener = self._on_event
        bench.supervisor.progress = self._on_progress
        self._progress.update(self._study_task, total=self.study.episodes + 1)
        try:
            with Live(self._render(), console=self._console, refresh_per_second=4, transient=True) as self._live:
                self._live.get_renderable = self._render  # type: ignore[method-assign]
                yield
        finally:
            bench.announce.listener = None

    def final(
        self, results: FinalResults, folder: Path, added: int | None = None, moves: Sequence[AliasMove] = ()
    ) -> None:
        """The frontier, the aliases that moved, and one closing line (see ``closing_line``)."""
        if self._document is not None and self._document.solutions:
            self._console.print(frontier_table(self._document, results.termination_reason))
        for text in (*map(str, moves), closing_line(results, folder, added)):
            self._console.print(escape(text), highlight=False, soft_wrap=True)

    def _on_progress(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._work_task, description=f"  {what}", completed=done, total=total, visible=True)

    def _on_event(self, event: str, facts: dict[str, Any]) -> None:
        if event == "progress":
            self._records = list(facts["records"])
            self._progress.update(self._study_task, completed=len(self._records))
        elif event == "step":
            self._progress.reset(self._work_task, total=None, description=f"  {facts['name']}", visible=True)
        elif event == "planned":
            self._episode_begun = time.monotonic()
            self._announce_plan(facts["plan"])
        elif event == "recorded":
            self._announce_record(facts["record"])
        elif event == "frontier":
            self._document = facts["document"]

    def _announce_plan(self, plan: Any) -> None:
        label = brief(plan.strategy.label) if plan.strategy else f"end: {plan.end}"
        self._console.print(f"[bold]episode {plan.episode}[/] {escape(label)}", highlight=False)
        if self._detailed and plan.rationale:
            self._console.print(f"  [dim]{escape(plan.rationale)}[/]", highlight=False)

    def _announce_record(self, record: EpisodeRecord) -> None:
        seconds = time.monotonic() - self._episode_begun
        if record.objectives is None:
            reason = escape(plain_reason(record.error or ""))
            colour = "cyan" if record.status == "rejected" else "red"
            self._console.print(f"  [{colour}]{record.status}[/] after {seconds:.0f} s: {reason}", highlight=False)
            return
        goals = record.objectives
        kept = f" ({record.report.accuracy.value:.3f} on the report items)" if record.report else ""
        self._console.print(
            f"  accuracy {goals.accuracy:.3f}{kept}, {goals.latency_ms:.1f} ms, "
            f"{goals.memory_gb * 1000:.1f} MB in memory, {goals.model_size_gb * 1000:.2f} MB on disk, "
            f"{goals.co2_grams:.3g} g CO2e, {seconds:.0f} s{' (known already)' if record.reused else ''}",
            highlight=False,
        )

    def _render(self) -> Group:
        parts: list[Any] = [self._progress]
        if self._document is not None and self._document.solutions:
            parts.insert(0, frontier_table(self._document, None))
        return Group(*parts)


def frontier_table(document: FrontierDocument, reason: str | None) -> Table:
    """The frontier as a table; differences are against the baseline."""
    title = f"Pareto frontier of {escape(document.study)}, hypervolume {document.hypervolume:.4f}"
    shown = _first(document.solutions)
    legend = _LEGEND if any(solution.is_knee for solution in shown) else None
    caption = "\n".join(text for text in (reason, legend) if text)
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for heading in (
        "episode",
        "strategy",
        "accuracy",
        "latency ms",
        "memory MB",
        "size MB",
        "of baseline",
        "g CO2e/1k",
    ):
        table.add_column(heading, justify="left" if heading == "strategy" else "right")
    for solution in shown:
        goals = solution.objectives
        ratio = goals.model_size_gb / document.baseline.model_size_gb if document.baseline else float("nan")
        low, high = solution.intervals.get("accuracy", (goals.accuracy, goals.accuracy))
        table.add_row(
            f"{solution.episode}{' ◆' if solution.is_knee else ''}",
            escape(brief(solution.strategy)),
            f"{goals.accuracy:.3f} [{low:.3f}, {high:.3f}]",
            f"{goals.latency_ms:.1f}",
            f"{goals.memory_gb * 1000:.1f}",
            f"{goals.model_size_gb * 1000:.2f}",
            f"{ratio:.0%}",
            f"{goals.co2_grams:.3g}",
            style=None if solution.meets_constraints else "dim",
        )
    return table


def plain_reason(text: str) -> str:
    """Why an episode gave no result, for people: how far its evaluation came in words, and sizes in MB.

    Where one of the sizes is large, such as a machine's memory, all of them stay in GB.
    """
    text = re.sub(r"^rung ([0-3])(?=: )", lambda found: _RUNGS[found[1]], text)
    if any(float(found[1]) >= _LEAST_GB for found in _SIZE.finditer(text)):
        return text
    return _SIZE.sub(lambda found: f"{float(found[1]) * 1000:.4g} MB", text)


def wide_console(**options: Any) -> Console:
    """A console that does not squeeze tables into 80 columns when the output is a file or a pipe."""
    console = Console(**options)
    return console if console.is_terminal else Console(width=max(console.width, _PIPE_WIDTH), **options)


def brief(label: str) -> str:
    """A strategy's label without the parameters that have their default."""
    from agentic_compression.methods import search_space

    strategy = Strategy.parse(label)
    return search_space(len(strategy.stages) or 1).brief(strategy)


def _first(solutions: Sequence[Any]) -> Sequence[Any]:
    return solutions[:_SHOWN]
