"""Mean curves of the planners, one panel a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

from benchmarks.planners.replay import Course

__all__ = ["plot"]


def plot(found: Mapping[tuple[str, str], list[Course]], path: Path) -> None:
    """Write the share of the best hypervolume by episode as an HTML page (plotly)."""
    from plotly.colors import DEFAULT_PLOTLY_COLORS
    from plotly.subplots import make_subplots

    tables = list(dict.fromkeys(table for table, _ in found))
    planners = list(dict.fromkeys(planner for _, planner in found))
    colours = dict(zip(planners, cycle(DEFAULT_PLOTLY_COLORS), strict=False))
    figure = make_subplots(rows=1, cols=len(tables), subplot_titles=tables, shared_yaxes=True)
    for (table, planner), courses in found.items():
        means = [statistics.fmean(volumes) for volumes in zip(*(course.volumes for course in courses), strict=True)]
        figure.add_scatter(
            x=list(range(len(means))),
            y=means,
            mode="lines",
            name=planner,
            legendgroup=planner,
            showlegend=table == tables[0],
            line={
                "width": 4 if planner == "greybox" else 1.5,
                "color": colours[planner],
            },
            row=1,
            col=tables.index(table) + 1,
        )
    figure.update_xaxes(title_text="episodes")
    figure.update_yaxes(title_text="share of the best hypervolume", range=[0.5, 1.0], col=1)
    figure.update_layout(template="plotly_white", width=480 * len(tables) + 120, height=460)
    figure.write_html(path, include_plotlyjs=True)
