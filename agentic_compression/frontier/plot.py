"""The frontier as a page: one HTML file that needs nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from agentic_compression.frontier.figures import hypervolume_figure, main_figure, parallel_figure
from agentic_compression.frontier.page import POLICY, SCRIPT, STYLE, episode_table, study_facts
from agentic_compression.frontier.reported import displayed, is_split, reported

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from agentic_compression.records import EpisodeRecord, FrontierDocument

__all__ = ["figure_html", "frontier_html", "main_figure"]

_CONFIG = {"displaylogo": False, "responsive": True}


def frontier_html(document: FrontierDocument, records: Sequence[EpisodeRecord]) -> str:
    """A self-contained interactive page of a study.

    It holds plotly.js itself and a content security policy that makes the browser refuse every outside request.
    Whatever comes from strategies, errors or rationales is escaped.

    Args:
        document: the frontier of these records.
        records: everything recorded of the study, failures included, in any order.

    Returns:
        The page, about 5 MB, most of it plotly.js.
    """
    shown = displayed(records)
    noise = "; ".join(f"{name} ±{epsilon:.2g}" for name, epsilon in document.noise.items() if epsilon > 0)
    sections = [
        _section(
            "Trade-off",
            "Colour is the method, area the latency, bars the 95 % intervals; outlined points are on the frontier of "
            "all five objectives, faint ones are not. Choose the axes from the menu.",
            _embedded(main_figure(document, shown), "trade-off"),
        ),
        _section(
            "All objectives",
            "One line for each measured episode, the frontier's in colour. Drag along an axis to filter.",
            _embedded(parallel_figure(document, shown), "parallel"),
        ),
        _section(
            "Progress",
            "Largest hypervolume the frontier had reached after each episode.",
            _embedded(hypervolume_figure(reported(records)), "progress"),
        ),
        _section(
            "Episodes",
            "Every episode, whatever came of it, with 95 % intervals. " + _whose_accuracy(document, records),
            episode_table(document, shown),
        ),
    ]
    note = f"Differences within the baseline's measured noise do not count as better: {noise}." if noise else ""
    body = (
        f"<main><header><h1>{escape(document.study)}</h1><p>Compressed versions of one model: accuracy against "
        f"latency, memory, size and CO₂</p></header>{study_facts(document, shown)}{''.join(sections)}"
        f"<footer>{escape(' '.join([note, *document.warnings]))}</footer></main>"
    )
    return _page(f"{document.study} · Pareto frontier", body)


def figure_html(document: FrontierDocument, records: Sequence[EpisodeRecord]) -> str:
    """A self-contained page of the main figure alone, for embedding in a dashboard; arguments as ``frontier_html``."""
    return _page(
        f"{document.study} · Pareto frontier", _embedded(main_figure(document, displayed(records)), "trade-off")
    )


def _whose_accuracy(document: FrontierDocument, records: Sequence[EpisodeRecord]) -> str:
    if not is_split(records):
        return ""
    missing = "".join(f" Episode {item.episode}: {item.reason}." for item in document.unreported)
    return (
        "Accuracy is that of the report items, which no plan has seen, wherever they were asked; an episode that was "
        "dominated on the search items shows its accuracy there and is not ranked." + missing
    )


def _section(title: str, note: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(note)}</p>{content}</section>"


def _embedded(figure: Figure, name: str) -> str:
    html: str = figure.to_html(config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=name)
    return html


def _page(title: str, body: str) -> str:
    from plotly.offline import get_plotlyjs

    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY, quote=True)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head>"
        f"<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )
