"""``acf plan``: what it prints, what it asks, and that nothing runs unless it is wanted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agentic_compression.cli.main import app
from agentic_compression.errors import ConfigurationError

WISH = "smallest model losing under 1 point, at most 50 g CO2"


def _acf(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["plan", *arguments, "-m", "demo", "-d", "demo"], input=answer)


def test_it_shows_what_was_understood_and_the_plan(home: Path) -> None:
    done = _acf(WISH)
    assert done.exit_code == 0, done.output
    for words in ("accuracy_drop<=0.01", "carbon_budget_grams<=50", "goal: smallest on disk", "distillation", "lora"):
        assert words in done.stdout
    assert "nothing was run" in done.stdout
    assert not (home / "data" / "mlflow.db").exists()


def test_json_is_the_plan(home: Path) -> None:
    made = json.loads(_acf(WISH, "--json", "--carbon-budget-g", "20", "--episodes", "4").stdout)
    assert made["study"]["carbon_budget_kg"] == pytest.approx(0.02)  # the smaller of the two
    assert made["study"]["episodes"] == 4
    assert made["wish"]["not_understood"] == []
    assert made["items"][0]["kind"] == "baseline"
    assert all(item["status"] == "pending" for item in made["items"])
    kinds = {item["kind"]: item for item in made["items"]}
    low, high = kinds["seed"]["estimate"]["outlook"]["size_ratio"][1:]
    assert 0 < low < high


def test_what_was_not_understood_is_shown(home: Path) -> None:
    done = _acf("smallest model, and paint it blue")
    assert done.exit_code == 0
    assert "paint it blue" in done.stdout
    assert "not understood" in done.stdout


def test_chinese(home: Path) -> None:
    done = _acf("最小的模型,準確率下降不超過 2%")
    assert "accuracy_drop<=0.02" in done.stdout
    assert "最小的模型" in done.stdout


def test_nothing_runs_where_nobody_can_confirm(home: Path) -> None:
    done = _acf(WISH, "--run")
    assert done.exit_code == 0, done.output
    assert "nothing was run" in done.stdout
    assert not (home / "data" / "mlflow.db").exists()
    assert not list(home.glob("data/experiments/*/final_results.json"))


def test_constraints_by_hand_count_besides(home: Path) -> None:
    made = json.loads(_acf("fastest model", "--constraint", "size_ratio<=0.5", "--json").stdout)
    assert made["study"]["constraints"] == [{"quantity": "size_ratio", "operator": "<=", "bound": 0.5}]


@pytest.mark.parametrize(
    ("arguments", "words"), [(("",), "1 to 4000 characters"), ((WISH, "--carbon-budget-g", "0"), "more than 0")]
)
def test_wrong_input_is_one_line(arguments: tuple[str, ...], words: str, home: Path) -> None:
    done = _acf(*arguments)
    assert isinstance(done.exception, ConfigurationError), done.output
    assert words in str(done.exception)
