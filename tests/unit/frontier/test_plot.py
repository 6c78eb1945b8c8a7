"""The page: parses, asks nothing of the network, and shows hostile text as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from agentic_compression.frontier import build_frontier
from agentic_compression.frontier.figures import axis_units, hypervolume_figure, main_figure, parallel_figure
from agentic_compression.frontier.page import SCRIPT
from agentic_compression.frontier.plot import figure_html, frontier_html
from agentic_compression.records import EpisodeRecord, Stage, Strategy
from tests.unit.frontier.studies import BASELINE_VALUES, episode

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
_VOID = {"meta", "img", "br", "input", "link", "hr"}


class _Page(HTMLParser):
    """Collects what a browser would act on, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.visible: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.visible.append(data)


@pytest.fixture
def records() -> list[EpisodeRecord]:
    hostile = Strategy(stages=(Stage(method="gptq", parameters={"mode": ATTACK}),))
    return [
        episode(0, BASELINE_VALUES),
        episode(1, (0.48, 60, 2, 0.9, 5), label="gptq:bits=4"),
        episode(2, (0.3, 40, 1, 0.5, 3), label="magnitude:sparsity=0.3 | gptq:bits=2"),
        episode(3, (0.2, 90, 3, 1.9, 9), label="rtn:bits=8").model_copy(update={"strategy": hostile}),
        episode(4, None, status="oom").model_copy(update={"error": ATTACK, "rationale": ATTACK, "strategy": hostile}),
    ]


def test_page_parses_and_asks_nothing_of_the_network(records: list[EpisodeRecord]) -> None:
    for text in (
        frontier_html(build_frontier("s", records), records),
        figure_html(build_frontier("s", records), records),
    ):
        page = _Page(text)
        assert page.open == []
        assert not [name for _, name, _ in page.attributes if name in {"src", "href", "srcset", "action", "data"}]
        assert "link" not in page.tags
        assert "iframe" not in page.tags
        policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
        assert "default-src 'none'" in policy
        assert "http" not in policy
        styles = "".join(re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL))
        assert "url(" not in styles
        assert "@import" not in styles


def test_hostile_text_is_shown_as_text(records: list[EpisodeRecord]) -> None:
    document = build_frontier(ATTACK, records)
    text = frontier_html(document, records)
    page = _Page(text)
    assert "<script>alert(1)" not in text
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    shown = "".join(page.visible)
    assert shown.count(ATTACK) >= 3  # title, strategy, error
    copied = [value for _, name, value in page.attributes if name == "data-copy"]
    assert "acf evaluate -m '/store/it'\"'\"'s 1'" in copied
    hovers = [h for trace in main_figure(document, records).data for h in (trace.hovertext or ())]
    assert any("&lt;script&gt;" in hover for hover in hovers)
    assert not any("<script" in hover or "<img" in hover for hover in hovers)


def test_table_has_one_row_an_episode_with_reason_and_commands(records: list[EpisodeRecord]) -> None:
    text = frontier_html(build_frontier("my study", records), records)
    rows = re.findall(r"<tr(?: class=\"member\")?>.*?</tr>", text.split("<tbody>")[1], flags=re.DOTALL)
    assert len(rows) == len(records)
    assert "reason 1" in rows[1]
    assert "acf rebuild &#x27;my study&#x27; 1" in rows[1]
    assert "oom" in rows[4]
    assert "best compromise" in text


def test_main_figure_shows_every_episode_and_every_pair_of_objectives(records: list[EpisodeRecord]) -> None:
    figure = main_figure(build_frontier("s", records), records)
    points = sum(len(trace.x) for trace in figure.data if trace.mode == "markers")
    assert points == len(records)
    (menu,) = figure.layout.updatemenus
    assert len(menu.buttons) == 10
    assert menu.buttons[0].label == "Accuracy / Model size"
    line = next(trace for trace in figure.data if trace.mode == "lines")
    assert list(line.x) == sorted(line.x)
    assert list(line.x) == [0.5, 0.9, 2.0]  # episode 3 is dominated
    bars = next(trace for trace in figure.data if trace.name == "gptq").error_y
    assert bars.arrayminus[0] == pytest.approx(0.05 * 1.959964)


def test_small_values_are_shown_in_small_units(records: list[EpisodeRecord]) -> None:
    tiny = [episode(0, (0.5, 0.01, 0.0004, 0.00104, 0.002))]
    assert [unit.symbol for unit in axis_units(tiny).values()] == ["", "µs", "MB", "MB", "mg"]
    assert [unit.symbol for unit in axis_units(records).values()] == ["", "ms", "GB", "GB", "g"]


def test_figures_of_an_empty_or_failed_study_are_drawn() -> None:
    for records in ([], [episode(0, None)], [episode(0, BASELINE_VALUES)]):
        document = build_frontier("s", records)
        assert _Page(frontier_html(document, records)).open == []
        for figure in (main_figure(document, records), parallel_figure(document, records), hypervolume_figure(records)):
            json.loads(figure.to_json())


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed, so the page's script is not parsed")
def test_script_of_the_page_parses() -> None:
    subprocess.run(["node", "--check", "-"], input=SCRIPT, text=True, check=True, capture_output=True)
