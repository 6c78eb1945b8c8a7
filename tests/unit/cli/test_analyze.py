"""``acf analyze``: by a study's name, by its folder, and what there is when neither is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentic_compression.cli.main import app
from agentic_compression.errors import ConfigurationError
from agentic_compression.records import FrontierDocument
from agentic_compression.settings import get_settings
from agentic_compression.storage import write_record
from agentic_compression.study.workbench import study_folder


def _acf(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["analyze", *arguments])


@pytest.fixture
def folder(home: Path) -> Path:
    """A study named ``one``."""
    document = FrontierDocument(
        study="one", objectives=(), baseline=None, reference_point=None, hypervolume=0.25, solutions=()
    )
    found = study_folder(get_settings(), "one")
    write_record(found / "pareto_frontier.json", document)
    return found


def test_a_study_is_named_or_its_folder_given(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")  # a folder of that name that holds no study
    for named in ("one", str(folder)):
        result = _acf(named, "--json")
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["hypervolume"] == 0.25
    monkeypatch.chdir(folder)
    assert json.loads(_acf(".", "--json").stdout)["study"] == "one"


def test_studies_are_listed_when_none_is_named(folder: Path) -> None:
    assert _acf().stdout == "one\n"
    assert json.loads(_acf("--json").stdout) == ["one"]
    for wrong in ("two", "./two"):
        error = _acf(wrong).exception
        assert isinstance(error, ConfigurationError)
        assert "studies here: one" in str(error)
    (folder / "pareto_frontier.json").unlink()
    assert "begin one with 'acf run'" in _acf().stdout
    assert json.loads(_acf("--json").stdout) == []
