"""``acf run --dry-run``: what would run, without running it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from agentic_compression.cli.live import wide_console

if TYPE_CHECKING:
    from agentic_compression.records import StudyConfig

__all__ = ["preview"]


def preview(study: StudyConfig) -> None:
    """Print the study, the methods on offer and the first strategies; writes nothing and measures nothing."""
    from agentic_compression.methods import search_space
    from agentic_compression.planning import seed_strategies, select_planner
    from agentic_compression.settings import get_settings
    from agentic_compression.study.preflight import preflight

    console = wide_console()
    settings = get_settings()
    with tempfile.TemporaryDirectory() as folder:
        preflight(study, settings.model_copy(update={"home": Path(folder)}))
    space = search_space(study.max_stages)
    _, note = select_planner(study.planner, settings.openai_api_key is not None)
    console.print(f"study [bold]{escape(study.name)}[/]: {escape(study.model)} on {escape(study.dataset)}")
    console.print(f"{note}; {study.episodes} episodes after the baseline; seed {study.seed}")
    console.print(f"methods: {', '.join(method.name for method in space.offered)}")
    table = Table("episode", "strategy", "from", title="would begin with")
    table.add_row("0", "baseline", "measured like every other")
    for number, (strategy, reason) in enumerate(seed_strategies(space)[: study.episodes], start=1):
        table.add_row(str(number), escape(strategy.label), f"seed strategy: {reason}")
    console.print(table)
    console.print(f"files would be in {settings.experiments / study.name}")
