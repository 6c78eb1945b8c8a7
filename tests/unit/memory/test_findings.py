"""Findings: claims with their counts, and the pages made of them, in which a person's notes survive."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
import yaml

from agentic_compression.memory import Finding, Workspace, add_experiences, delete_experiences, findings
from agentic_compression.memory.knowledge import NOTES_BEGIN, NOTES_END, refresh_knowledge, write_knowledge
from agentic_compression.records import Experience
from agentic_compression.spec import size_class
from tests.unit.memory.experiences import failed, make_experience

ITEMS = [
    make_experience("a", 1),
    make_experience("a", 2, "rtn:bits=8"),
    make_experience("a", 4, "rtn:bits=3", accuracy=0.3),
    make_experience("b", 1, ratios={"latency_ms": 1.5, "model_size_gb": 0.3}),
    make_experience("c", 7, parameters=10**7, family="qwen2"),
    failed("c", 8),
    failed("c", 9, status="rejected"),
    make_experience("b", 2, "wanda:sparsity=0.5 | gptq:bits=4"),
    make_experience("b", 3, "wanda:sparsity=0.5 | svd_llm | gptq:bits=4"),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def _one(found: tuple[Finding, ...], quantity: str, methods: tuple[str, ...] = ("rtn",), where: str = "") -> Finding:
    (finding,) = (f for f in found if (f.quantity, f.methods, f.where) == (quantity, methods, where))
    return finding


def test_a_claim_counts_measurements_and_studies() -> None:
    finding = _one(findings(ITEMS, size_class), "accuracy_drop")
    assert finding.claim == "keeps accuracy within 0.02 of the baseline"
    assert (finding.held, finding.n) == (4, 5)
    assert (finding.studies_held, finding.studies) == (3, 3)
    assert finding.confidence == pytest.approx(4 / 5)
    assert finding.provenance == {"a": "1-2", "b": "1", "c": "7"}
    assert finding.contradicted_by == {"a": "4"}
    drops = [0.02, 0.02, 0.3, 0.02, 0.02]
    assert finding.median == pytest.approx(statistics.median(drops))
    assert finding.spread == pytest.approx(statistics.pstdev(drops))
    assert (finding.low, finding.high) == (pytest.approx(0.02), pytest.approx(0.3))


def test_the_opposite_is_stated_where_it_holds_more_often() -> None:
    slow = [make_experience(study, ratios={"latency_ms": 1.2}) for study in "abc"] + [make_experience("d")]
    finding = _one(findings(slow, size_class), "latency_ms")
    assert finding.claim == "does not answer faster"
    assert (finding.held, finding.n, finding.studies_held, finding.studies) == (3, 4, 3, 4)
    assert finding.contradicted_by == {"d": "1"}


def test_failures_count_and_rejections_do_not() -> None:
    finding = _one(findings(ITEMS, size_class), "failed")
    assert (finding.claim, finding.held, finding.n) == ("runs", 5, 6)
    assert finding.contradicted_by == {"c": "8"}
    only = _one(findings([failed("a"), failed("b")], size_class), "failed")
    assert (only.claim, only.held, only.confidence) == ("fails", 2, 0.75)


def test_a_ratio_of_1_is_no_gain_and_a_drop_on_the_bound_is_kept() -> None:
    found = findings([make_experience(accuracy=0.58, ratios={"memory_gb": 1.0})], size_class)
    assert _one(found, "memory_gb").claim == "does not need less memory"
    assert _one(found, "accuracy_drop").claim.startswith("keeps")


def test_claims_are_made_by_size_and_family_and_for_pairs_but_not_for_longer_strategies() -> None:
    found = findings(ITEMS, size_class)
    assert _one(found, "failed", where="tiny").provenance == {"c": "7"}
    assert _one(found, "failed", where="qwen2").n == 1
    assert _one(found, "failed", ("wanda", "gptq")).n == 1
    assert {f.methods for f in found} == {("rtn",), ("wanda", "gptq")}


def test_the_order_of_the_experiments_does_not_matter() -> None:
    shuffled = list(ITEMS)
    random.Random(3).shuffle(shuffled)
    assert findings(shuffled, size_class) == findings(ITEMS, size_class)


def _pages(workspace: Workspace) -> dict[str, str]:
    return {str(p.relative_to(workspace.knowledge)): p.read_text() for p in workspace.knowledge.rglob("*.md")}


def _remember(workspace: Workspace, *items: Experience) -> None:
    with workspace.lock():
        add_experiences(workspace, items)
    refresh_knowledge(workspace, size_class)


def test_pages_are_written_by_subject_with_front_matter_that_yaml_reads(workspace: Workspace) -> None:
    _remember(workspace, *ITEMS)
    pages = _pages(workspace)
    assert set(pages) == {
        *("methods/rtn.md", "pairs/wanda--gptq.md", "sizes/small.md", "sizes/tiny.md"),
        *("families/llama.md", "families/qwen2.md"),
    }
    front = yaml.safe_load(pages["methods/rtn.md"].split("---\n")[1])
    assert front["kind"] == "method"
    assert front["subject"] == "rtn"
    assert front["studies"] == ["a", "b", "c"]
    expected = [f for f in findings(ITEMS, size_class) if f.methods == ("rtn",) and f.scope == "all"]
    assert [Finding.model_validate(value) for value in front["findings"]] == expected
    assert "held in 4 of 5 measurements" in pages["methods/rtn.md"]
    assert "Contradicted by episodes of `a` 4." in pages["methods/rtn.md"]


def test_pages_do_not_depend_on_the_order_and_are_not_rewritten_without_need(
    workspace: Workspace, tmp_path: Path
) -> None:
    _remember(workspace, *ITEMS)
    other = Workspace(tmp_path / "other")
    for item in reversed(ITEMS):
        _remember(other, item)
    assert _pages(other) == _pages(workspace)
    assert refresh_knowledge(workspace, size_class) == 0


def test_notes_survive_and_everything_else_is_derived_again(workspace: Workspace) -> None:
    _remember(workspace, *ITEMS)
    path = workspace.knowledge / "methods" / "rtn.md"
    fresh = path.read_text()
    notes = "Use group 32.\n\n--- not front matter ---\nécrit à la main"
    path.write_text(fresh.replace(f"{NOTES_BEGIN}\n\n", f"{NOTES_BEGIN}\n{notes}\n").replace("# rtn", "# forged"))
    refresh_knowledge(workspace, size_class)
    text = path.read_text()
    assert text == fresh.replace(f"{NOTES_BEGIN}\n\n", f"{NOTES_BEGIN}\n{notes}\n")
    _remember(workspace, make_experience("new", 1))
    assert notes in path.read_text()
    assert "`new` 1" in path.read_text()


@pytest.mark.parametrize(
    "written",
    ["my own page, no marks", f"x\n{NOTES_BEGIN}\nmy own page, the end is gone", f"my own page, no begin\n{NOTES_END}"],
)
def test_what_was_written_without_the_marks_is_not_lost(workspace: Workspace, written: str) -> None:
    path = workspace.knowledge / "methods" / "rtn.md"
    path.parent.mkdir(parents=True)
    path.write_text(written)
    _remember(workspace, *ITEMS)
    refresh_knowledge(workspace, size_class)
    text = path.read_text()
    assert "my own page" in text
    assert text.startswith("---\nkind")
    assert refresh_knowledge(workspace, size_class) == 0


def test_notes_that_are_not_utf8_stay_as_they_are(workspace: Workspace) -> None:
    _remember(workspace, *ITEMS)
    path = workspace.knowledge / "methods" / "rtn.md"
    begin = f"{NOTES_BEGIN}\n".encode()
    path.write_bytes(path.read_bytes().replace(begin, begin + b"caf\xe9"))
    _remember(workspace, make_experience("new", 1))
    assert b"caf\xe9" in path.read_bytes()


def test_a_page_without_experiments_goes_unless_it_has_notes(workspace: Workspace) -> None:
    _remember(workspace, *ITEMS)
    noted = workspace.knowledge / "methods" / "rtn.md"
    noted.write_text(noted.read_text().replace(f"{NOTES_BEGIN}\n", f"{NOTES_BEGIN}\nkept"))
    with workspace.lock():
        delete_experiences(workspace, [path.stem for path in workspace.experiments.glob("*.json")])
    refresh_knowledge(workspace, size_class)
    assert set(_pages(workspace)) == {"methods/rtn.md"}
    assert "Nothing is remembered" in noted.read_text()
    assert "kept" in noted.read_text()


@pytest.mark.parametrize(
    "family", ["../../etc/cron", "a/b", "x\n---\nkind: forged", f"{NOTES_BEGIN} forged {NOTES_END}", "日本", "Llama"]
)
def test_a_family_from_outside_makes_a_harmless_page(workspace: Workspace, family: str) -> None:
    found = findings([make_experience(family=family), make_experience("b", family="llama")], size_class)
    with workspace.lock():
        write_knowledge(workspace, found)
    folder = workspace.knowledge / "families"
    assert len(list(folder.iterdir())) == 2
    assert {path.parent.name for path in workspace.knowledge.rglob("*.md")} == {"families", "methods", "sizes"}
    (page,) = (path for path in folder.iterdir() if path.name != "llama.md")
    front = yaml.safe_load(page.read_text().split("\n---\n")[0])
    assert (front["kind"], front["subject"]) == ("family", family)
    assert page.read_text().count(NOTES_BEGIN) == page.read_text().count(NOTES_END) == 1
    with workspace.lock():
        assert write_knowledge(workspace, found) == 0


def test_a_link_in_place_of_a_page_is_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = workspace.knowledge / "methods" / "rtn.md"
    path.parent.mkdir(parents=True)
    path.symlink_to(secret)
    _remember(workspace, *ITEMS)
    assert secret.read_text() == "secret"
    assert "secret" not in path.read_text()
    assert not path.is_symlink()
