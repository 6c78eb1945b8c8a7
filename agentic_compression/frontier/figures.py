"""Plotly figures of a study: the trade-off with selectable axes, parallel coordinates, hypervolume by episode."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from agentic_compression.frontier.hypervolume import hypervolume_by_episode
from agentic_compression.frontier.objectives import NAMES, measured, one_per_episode

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from agentic_compression.records import EpisodeRecord, FrontierDocument

__all__ = ["AxisUnit", "axis_units", "hypervolume_figure", "main_figure", "method_chain", "parallel_figure"]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7a7a7a")
"""Okabe & Ito's colours, which the colour-blind can tell apart, and two more."""
STATUS_COLOURS = {
    "succeeded": "#009e73",
    "rejected": "#56b4e9",
    "infeasible": "#e69f00",
    "failed": "#d55e00",
    "oom": "#cc79a7",
    "timed_out": "#8c6bb1",
}
_LINE = "#d4a017"
_TITLES = {
    "accuracy": "Accuracy",
    "latency_ms": "Latency per request",
    "memory_gb": "Memory",
    "model_size_gb": "Model size",
    "co2_grams": "CO₂ of 1,000 requests",
}
_UNITS = {
    "accuracy": ((1.0, ""),),
    "latency_ms": ((1.0, "ms"), (1e3, "µs")),
    "memory_gb": ((1.0, "GB"), (1e3, "MB"), (1e6, "kB")),
    "model_size_gb": ((1.0, "GB"), (1e3, "MB"), (1e6, "kB")),
    "co2_grams": ((1.0, "g"), (1e3, "mg"), (1e6, "µg")),
}


class AxisUnit(NamedTuple):
    """How one objective is shown: its title with the unit, and the factor from the record's unit to it."""

    name: str
    title: str
    symbol: str
    factor: float

    @property
    def label(self) -> str:
        """``Model size (MB)``."""
        return f"{self.title} ({self.symbol})" if self.symbol else self.title


def axis_units(records: Sequence[EpisodeRecord]) -> dict[str, AxisUnit]:
    """The unit of each objective in which the largest value of the study reads well."""
    found = [record.objectives for record in records if record.objectives is not None]
    units = {}
    for name in NAMES:
        largest = max((float(getattr(objectives, name)) for objectives in found), default=1.0)
        factor, symbol = next((unit for unit in _UNITS[name] if largest * unit[0] >= 0.1), _UNITS[name][-1])
        units[name] = AxisUnit(name, _TITLES[name], symbol, factor)
    return units


def method_chain(record: EpisodeRecord) -> str:
    """``magnitude | gptq``: the methods of a strategy without their parameters."""
    return " | ".join(stage.method for stage in record.strategy.stages) or "baseline"


def main_figure(document: FrontierDocument, records: Sequence[EpisodeRecord]) -> Figure:
    """Every episode of a study over two objectives, chosen from a menu; accuracy against size at first.

    Colour is the chain of methods, the bubble's area is latency, bars are 95 % intervals, the line joins what is not
    dominated in the two objectives shown, faint points are not on the frontier of all five, crosses at the lower edge
    are episodes without a result.

    Args:
        document: the frontier of these records.
        records: everything recorded of the study.
    """
    import plotly.graph_objects as go

    points, units = measured(records), axis_units(records)
    on_frontier = {solution.episode for solution in document.solutions}
    groups = _groups(points)
    slowest = max((record.objectives.latency_ms for record in points if record.objectives), default=0.0) or 1.0
    traces = []
    for position, (chain, group) in enumerate(groups):
        colour = "#1c1e21" if chain == "baseline" else PALETTE[(position - 1) % len(PALETTE)]
        traces.append(_bubbles(chain, group, on_frontier, slowest, colour))
    traces.append(go.Scatter(mode="lines", name="frontier of the two shown", line={"color": _LINE, "width": 2.5}))
    traces[-1].hoverinfo = "skip"
    figure = go.Figure([*traces, *_without_result(records)])
    pairs = [("model_size_gb", "accuracy"), *(pair for pair in _pairs() if pair != ("model_size_gb", "accuracy"))]
    buttons = [_button(pair, units, [group for _, group in groups]) for pair in pairs]
    for trace, values in zip(figure.data, _transposed(buttons[0]["args"][0], len(traces)), strict=False):
        trace.update(values)
    figure.update_layout(
        **_layout(),
        height=620,
        updatemenus=[{**_MENU, "buttons": buttons}],
        xaxis={"title": {"text": units[pairs[0][0]].label}, "gridcolor": _GRID, "zeroline": False},
        yaxis={"title": {"text": units[pairs[0][1]].label}, "gridcolor": _GRID, "zeroline": False},
        xaxis2={"overlaying": "x", "range": [0, 1], "visible": False, "fixedrange": True},
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    )
    return figure


def parallel_figure(document: FrontierDocument, records: Sequence[EpisodeRecord]) -> Figure:
    """Parallel coordinates of the measured episodes; the frontier's are coloured. Drag along an axis to filter."""
    import plotly.graph_objects as go

    points, units = measured(records), axis_units(records)
    on_frontier = {solution.episode for solution in document.solutions}
    dimensions = [{"label": "Episode", "values": [record.episode for record in points]}]
    dimensions += [
        {"label": units[name].label, "values": [_shown(record, units[name]) for record in points]} for name in NAMES
    ]
    colours = [float(record.episode in on_frontier) for record in points]
    line = {"color": colours, "colorscale": [[0, "#b5bac3"], [1, PALETTE[0]]], "cmin": 0, "cmax": 1}
    figure = go.Figure(go.Parcoords(dimensions=dimensions, line=line))
    figure.update_layout(**{**_layout(), "margin": {"l": 70, "r": 70, "t": 60, "b": 30}}, height=380)
    return figure


def hypervolume_figure(records: Sequence[EpisodeRecord]) -> Figure:
    """Largest hypervolume reached after each episode; a marker's colour is the episode's status."""
    import plotly.graph_objects as go

    ordered = one_per_episode(records)
    numbers, history = [record.episode for record in ordered], hypervolume_by_episode(ordered)
    line = {"color": PALETTE[0], "width": 2, "shape": "hv"}
    traces = [go.Scatter(x=numbers, y=history, mode="lines", line=line, hoverinfo="skip", showlegend=False)]
    for status, colour in STATUS_COLOURS.items():
        rows = [row for row, record in enumerate(ordered) if record.status == status]
        if rows:
            traces.append(
                go.Scatter(
                    x=[numbers[row] for row in rows],
                    y=[history[row] for row in rows],
                    mode="markers",
                    name=status,
                    marker={"color": colour, "size": 9, "symbol": "circle" if status == "succeeded" else "x"},
                    hovertext=[_hover(ordered[row]) for row in rows],
                    hovertemplate="%{hovertext}<br>hypervolume %{y:.4f}<extra></extra>",
                )
            )
    figure = go.Figure(traces)
    figure.update_layout(
        **_layout(),
        height=340,
        xaxis={"title": {"text": "Episode"}, "gridcolor": _GRID, "zeroline": False},
        yaxis={"title": {"text": "Hypervolume"}, "gridcolor": _GRID, "rangemode": "tozero"},
    )
    return figure


_GRID = "rgba(128,128,128,.22)"
_MENU: dict[str, Any] = {
    "x": 0,
    "y": 1.16,
    "xanchor": "left",
    "yanchor": "top",
    "bgcolor": "rgba(255,255,255,.85)",
    "bordercolor": "#b5bac3",
    "font": {"color": "#1c1e21"},
}


def _layout() -> dict[str, Any]:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "#6b7280"},
        "margin": {"l": 70, "r": 24, "t": 76, "b": 60},
        "legend": {"orientation": "h", "y": -0.16, "x": 0},
        "hoverlabel": {"align": "left"},
        "template": "none",
    }


def _pairs() -> list[tuple[str, str]]:
    """(x, y) names: every cost against accuracy, then the costs against each other."""
    costs = NAMES[1:]
    return [*((cost, "accuracy") for cost in costs), *combinations(costs, 2)]


def _groups(points: Sequence[EpisodeRecord]) -> list[tuple[str, list[EpisodeRecord]]]:
    """Points by method chain, the baseline first."""
    chains = sorted({method_chain(record) for record in points}, key=lambda chain: (chain != "baseline", chain))
    return [(chain, [record for record in points if method_chain(record) == chain]) for chain in chains]


def _bubbles(chain: str, group: Sequence[EpisodeRecord], on_frontier: set[int], slowest_ms: float, colour: str) -> Any:
    import plotly.graph_objects as go

    kept = [record.episode in on_frontier for record in group]
    marker = {
        "color": colour,
        "symbol": "diamond" if chain == "baseline" else "circle",
        "size": [9 + 21 * (r.objectives.latency_ms / slowest_ms) ** 0.5 if r.objectives else 9 for r in group],
        "opacity": [0.95 if member else 0.35 for member in kept],
        "line": {"width": [2 if member else 0 for member in kept], "color": _LINE},
    }
    return go.Scatter(
        mode="markers",
        name=escape(chain),
        marker=marker,
        hovertext=[_hover(record, member) for record, member in zip(group, kept, strict=True)],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _without_result(records: Sequence[EpisodeRecord]) -> list[Any]:
    import plotly.graph_objects as go

    missing = [record for record in one_per_episode(records) if record.objectives is None]
    if not missing:
        return []
    return [
        go.Scatter(
            x=[(place + 1) / (len(missing) + 1) for place in range(len(missing))],
            y=[0.025] * len(missing),
            xaxis="x2",
            yaxis="y2",
            mode="markers",
            name="no result (position means nothing)",
            marker={"symbol": "x", "size": 9, "color": [STATUS_COLOURS[record.status] for record in missing]},
            hovertext=[_hover(record) for record in missing],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    ]


def _button(
    pair: tuple[str, str], units: dict[str, AxisUnit], groups: Sequence[Sequence[EpisodeRecord]]
) -> dict[str, Any]:
    """One entry of the menu: data of the groups' traces and of the line for a pair of objectives."""
    across, up = units[pair[0]], units[pair[1]]
    line = _staircase([record for group in groups for record in group], across, up)
    data: dict[str, list[Any]] = {
        "x": [[_shown(record, across) for record in group] for group in groups] + [[x for x, _ in line]],
        "y": [[_shown(record, up) for record in group] for group in groups] + [[y for _, y in line]],
    }
    for key, unit in (("error_x", across), ("error_y", up)):
        data[f"{key}.array"] = [[_reach(record, unit)[1] for record in group] for group in groups] + [None]
        data[f"{key}.arrayminus"] = [[_reach(record, unit)[0] for record in group] for group in groups] + [None]
        data[f"{key}.symmetric"] = [False] * (len(groups) + 1)
        data[f"{key}.thickness"] = [1.1] * (len(groups) + 1)
        data[f"{key}.width"] = [3] * (len(groups) + 1)
    layout = {"xaxis.title.text": across.label, "yaxis.title.text": up.label}
    traces = list(range(len(groups) + 1))
    return {"label": f"{up.title} / {across.title}", "method": "update", "args": [data, layout, traces]}


def _transposed(data: dict[str, list[Any]], traces: int) -> list[dict[str, Any]]:
    return [{key.replace(".", "_"): values[trace] for key, values in data.items()} for trace in range(traces)]


def _staircase(points: Sequence[EpisodeRecord], across: AxisUnit, up: AxisUnit) -> list[tuple[float, float]]:
    """The points not dominated in two objectives, by rising x."""
    sign = -1.0 if up.name == "accuracy" else 1.0
    ordered = sorted((_shown(record, across), sign * _shown(record, up)) for record in points)
    line: list[tuple[float, float]] = []
    for x, y in ordered:
        if not line or y < line[-1][1]:
            line.append((x, y))
    return [(x, sign * y) for x, y in line]


def _shown(record: EpisodeRecord, unit: AxisUnit) -> float:
    return float(getattr(record.objectives, unit.name)) * unit.factor


def _reach(record: EpisodeRecord, unit: AxisUnit) -> tuple[float, float]:
    """How far the 95 % interval reaches below and above the value."""
    value = float(getattr(record.objectives, unit.name))
    low, high = record.intervals.get(unit.name, (value, value))
    return max(value - low, 0.0) * unit.factor, max(high - value, 0.0) * unit.factor


def _hover(record: EpisodeRecord, member: bool | None = None) -> str:
    """Plotly reads a few tags in hover text, so everything from outside is escaped."""
    lines = [f"<b>Episode {record.episode}</b> · {record.status}", escape(_clipped(record.strategy.label))]
    if record.objectives is not None:
        units = axis_units([record])
        lines += [f"{unit.title}: {_shown(record, unit):.4g} {unit.symbol}".rstrip() for unit in units.values()]
    if member is not None:
        lines.append("on the frontier" if member else "not on the frontier")
    if record.error:
        lines.append(escape(_clipped(record.error)))
    return "<br>".join(lines)


def _clipped(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
