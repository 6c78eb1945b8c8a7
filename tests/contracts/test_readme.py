"""The README against the tree and the command line, and the Chinese README against the English one."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from agentic_compression.methods import Method
from tests.contracts.tree import ROOT, acf_calls, commands, problem_with_call

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-TW.md"
MAP_HEADING = {ENGLISH: "File map", CHINESE: "檔案地圖"}
PAGES = [ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _sections(path: Path) -> list[tuple[int, str, str]]:
    """Level, heading and text of every section; headings inside code blocks are none."""
    found: list[tuple[int, str, list[str]]] = [(0, "", [])]
    in_code = False
    for line in path.read_text(encoding="utf-8").splitlines():
        in_code ^= line.startswith("```")
        heading = None if in_code else re.match(r"(#+) (.*)", line)
        if heading:
            found.append((len(heading[1]), heading[2], []))
        else:
            found[-1][2].append(line)
    return [(level, title, "\n".join(lines)) for level, title, lines in found]


def _code_blocks(path: Path, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _mapped(path: Path) -> list[str]:
    """Paths in the first column of the file map's table."""
    text = next(text for _, title, text in _sections(path) if title == MAP_HEADING[path])
    return [name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)]


def _ignored() -> set[str]:
    lines = (ROOT / ".gitignore").read_text().splitlines()
    return {line.strip("/") for line in lines if line and "*" not in line and not line.startswith("!")}


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=_name)
def test_file_map_names_only_what_exists(path: Path) -> None:
    mapped = _mapped(path)
    assert mapped
    assert [name for name in mapped if not (ROOT / name).exists()] == []


def test_file_map_names_every_folder_and_package() -> None:
    passed_over = _ignored() | {".git", "agentic_compression.egg-info"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in passed_over}
    package = ROOT / "agentic_compression"
    parts = {f"agentic_compression/{path.name}" for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    parts -= {f"agentic_compression/{name}" for name in ("__pycache__", "__init__.py")}
    missing = (folders | parts) - set(_mapped(ENGLISH))
    assert not missing, f"not in README's file map: {sorted(missing)}"


def test_chinese_readme_has_the_same_sections() -> None:
    levels = {path: [level for level, _, _ in _sections(path)] for path in (ENGLISH, CHINESE)}
    assert levels[CHINESE] == levels[ENGLISH]


def test_chinese_readme_has_the_same_code() -> None:
    assert [_without_comments(block) for block in _code_blocks(CHINESE)] == [
        _without_comments(block) for block in _code_blocks(ENGLISH)
    ]


def _without_comments(block: str) -> str:
    return re.sub(r"\s*(?<!\S)# .*$", "", block, flags=re.MULTILINE)


def test_chinese_readme_has_the_same_file_map_tables_and_links() -> None:
    assert _mapped(CHINESE) == _mapped(ENGLISH)
    rows = {path: len(re.findall(r"^\|", path.read_text(), re.MULTILINE)) for path in (ENGLISH, CHINESE)}
    assert rows[CHINESE] == rows[ENGLISH]
    english, chinese = (set(_links(path)) - {_name(ENGLISH), _name(CHINESE)} for path in (ENGLISH, CHINESE))
    assert chinese == english


def _links(path: Path) -> list[str]:
    """Targets of links and pictures; an anchor within the page is left out, for headings are translated."""
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()) if not target.startswith("#")]


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    local = [link.partition("#")[0] for link in _links(path) if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_commands_in_the_text_are_accepted(path: Path) -> None:
    calls = [call for block in _code_blocks(path, r"(?:bash|sh|console|crontab)") for call in acf_calls(block)]
    assert [problem for call in calls if (problem := problem_with_call(call))] == []


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_commands_named_in_a_sentence_exist(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"`acf ([a-z]+)((?: [a-z-]+)?)", text)
    first = {f"acf {command}" for command, _ in named}
    groups = {f"acf {a}{b}" for a, b in named if b and hasattr(commands().get(f"acf {a}"), "commands")}
    assert (first | groups) - set(commands()) == set()


@pytest.mark.parametrize("path", [ENGLISH, CHINESE], ids=_name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"(?:`|^|&& )make ([a-z-]+)", path.read_text(), re.MULTILINE))
    assert used
    assert used <= targets


def test_method_of_the_readme_is_a_method(tmp_path: Path) -> None:
    file = tmp_path / "threshold.py"
    file.write_text(_code_blocks(ENGLISH, "python")[0], encoding="utf-8")
    method = runpy.run_path(str(file))["METHOD"]
    assert isinstance(method, Method)
    assert [parameter.name for parameter in method.describe().parameters] == ["threshold"]
    assert method.config(threshold=0.01).threshold == 0.01
    with pytest.raises(ValueError, match="threshold must be one of"):
        method.config(threshold=0.5)


def test_no_result_is_left_open() -> None:
    """A place kept for a measured number must have been filled before it is published."""
    assert [_name(path) for path in PAGES if "<!-- result:" in path.read_text()] == []


def test_every_decision_is_in_the_index() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\d+)\. (.+)$", text, re.MULTILINE)
    listed = re.findall(r"^\| \[(\d+)\]\(#([^)]+)\) \|", text, re.MULTILINE)
    anchors = [
        (number, re.sub(r"[^\w\- ]", "", f"{number}. {title}".lower()).replace(" ", "-")) for number, title in headings
    ]
    assert listed == anchors
