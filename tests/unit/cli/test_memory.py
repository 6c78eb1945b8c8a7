"""``acf memory`` in a folder of its own: tables and JSON, confirmation, clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agentic_compression.cli.main import app
from agentic_compression.errors import AcfError, ConfigurationError
from agentic_compression.memory import Workspace, add_experiences, read_experiences
from tests.unit.memory.experiences import failed, make_experience


@pytest.fixture
def workspace(home: Path) -> Workspace:
    found = Workspace(home / "workspace")
    items = [
        make_experience("alpha", 1),
        make_experience("alpha", 2, "nf4", accuracy=0.3),
        make_experience("beta", 1, at="2020-01-01T00:00:00+00:00", model="other"),
        failed("beta", 2, at="2020-01-01T00:00:00+00:00", model="other"),
    ]
    with found.lock():
        add_experiences(found, items)
    return found


def _acf(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["memory", *arguments], input=answer)


def _error(*arguments: str) -> str:
    done = _acf(*arguments)
    assert isinstance(done.exception, ConfigurationError), done.output
    assert done.exception.exit_code == 2
    return str(done.exception)


def test_an_empty_memory_says_so_and_stays_absent(home: Path) -> None:
    assert "nothing is remembered" in _acf("show").stdout
    facts = json.loads(_acf("show", "--json").stdout)
    assert (facts["experiences"], facts["findings"], facts["quarantined"]) == (0, [], [])
    assert "forgot 0" in _acf("forget", "--all").stdout
    assert not (home / "workspace").exists()


def test_show_has_findings(workspace: Workspace) -> None:
    done = _acf("show")
    assert done.exit_code == 0
    assert "keeps accuracy within 0.02" in done.stdout
    assert "4 experiences of 2 studies" in done.stdout
    facts = json.loads(_acf("show", "--json").stdout)
    assert facts["studies"] == ["alpha", "beta"]
    assert {tuple(item["methods"]) for item in facts["findings"]} == {("rtn",), ("nf4",)}


def test_show_of_a_model(workspace: Workspace) -> None:
    done = _acf("show", "--model", "other")
    assert "2 experiences with other" in done.stdout
    assert "oom" in done.stdout
    listed = json.loads(_acf("show", "--model", "m", "--json").stdout)
    assert sorted(item["episode"] for item in listed) == [1, 2]
    assert {item["id"] for item in listed} <= set(read_experiences(workspace))
    assert "models: other" in _error("show", "--model", "othr")


def test_show_of_what_is_similar(workspace: Workspace) -> None:
    done = _acf("show", "--similar-to", "demo", "-d", "gsm8k")
    assert done.exit_code == 0, done.output
    assert "recommended" in done.stdout
    assert "rtn:bits=4" in done.stdout
    facts = json.loads(_acf("show", "--similar-to", "demo", "-d", "gsm8k", "--json").stdout)
    assert facts["recommendations"][0]["reasons"]
    assert len(facts["recalled"]) == 4
    assert all(0 <= entry["weight"] <= entry["similarity"] <= 1 for entry in facts["recalled"])


def test_show_names_what_was_set_aside(workspace: Workspace) -> None:
    (workspace.experiments / "x.json").write_text("{")
    assert "1 set aside" in _acf("show").stdout
    assert json.loads(_acf("show", "--json").stdout)["quarantined"][0]["origin"] == "x.json"


def test_options_that_do_not_go_together_are_refused(workspace: Workspace) -> None:
    assert "belong together" in _error("show", "--similar-to", "demo")
    assert "belong together" in _error("show", "-d", "demo")
    assert "one of them" in _error("show", "--similar-to", "demo", "-d", "demo", "-m", "demo")
    for wrong in ([], ["--all", "--study", "alpha"], ["--digest", "x", "--older-than", "3"]):
        assert "one of --study" in _error("forget", *wrong)
    assert "studies: alpha" in _error("forget", "--study", "alpa")
    assert "no experience" in _error("forget", "--digest", "nothing")
    assert _acf("forget", "--older-than", "-1").exit_code == 2
    assert len(read_experiences(workspace)) == 4


def test_forgetting_asks_first(workspace: Workspace) -> None:
    done = _acf("forget", "--study", "alpha", answer="n\n")
    assert done.exit_code != 0
    assert "Forget 2 of 4" in done.stderr
    assert len(read_experiences(workspace)) == 4
    assert "forgot 2 experiences" in _acf("forget", "--study", "alpha", answer="y\n").stdout
    assert {item.study for item in read_experiences(workspace).values()} == {"beta"}


def test_forgetting_by_age_digest_and_everything(workspace: Workspace) -> None:
    assert json.loads(_acf("forget", "--older-than", "365", "--yes", "--json").stdout)["experiences"] == 2
    one = next(iter(read_experiences(workspace)))
    assert "forgot 1 " in _acf("forget", "--digest", one, "-y").stdout
    (workspace.experiments / "x.json").write_text("{")
    assert "forgot 1 " in _acf("forget", "--all", "-y").stdout
    assert read_experiences(workspace) == {}
    assert not workspace.quarantine.exists()
    assert not list(workspace.knowledge.rglob("*.md"))


def test_export_forget_import_gives_the_same_memory(workspace: Workspace, home: Path) -> None:
    before = read_experiences(workspace)
    _acf("import", "nothing.jsonl")
    assert json.loads(_acf("export", "all.jsonl", "--json").stdout) == {"file": "all.jsonl", "experiences": 4}
    text = (home / "all.jsonl").read_text()
    _acf("forget", "--all", "--yes")
    (home / "all.jsonl").write_text(text + "{\n")
    done = _acf("import", "all.jsonl")
    assert done.exit_code == 0
    assert "4 new, 0 known already, 1 in" in done.stdout
    assert "all.jsonl, line 5" in done.stderr
    assert read_experiences(workspace) == before
    assert (workspace.knowledge / "methods" / "rtn.md").is_file()
    report = json.loads(_acf("import", "all.jsonl", "--json").stdout)
    assert (report["added"], report["known"], report["quarantined"]) == (0, 4, 1)


def test_an_import_without_a_valid_line_fails(workspace: Workspace, home: Path) -> None:
    (home / "bad.jsonl").write_text("{\n[]\n")
    assert _acf("import", "bad.jsonl").exit_code == 1
    (home / "empty.jsonl").write_text("")
    assert _acf("import", "empty.jsonl").exit_code == 0
    done = _acf("import", "none.jsonl")
    assert isinstance(done.exception, AcfError)


def test_export_does_not_overwrite_unasked(workspace: Workspace, home: Path) -> None:
    (home / "mine.txt").write_text("mine")
    assert "--overwrite" in _error("export", "mine.txt")
    assert (home / "mine.txt").read_text() == "mine"
    assert "wrote 4" in _acf("export", "mine.txt", "--overwrite").stdout
    assert "name a file" in _error("export", ".", "--overwrite")
