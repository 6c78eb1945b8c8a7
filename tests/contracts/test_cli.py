"""The command line: help with examples for every command, light to import, errors of one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentic_compression.cli.main import app
from tests.contracts.tree import ROOT, acf_calls, commands, problem_with_call

HEAVY = (
    "torch",
    "transformers",
    "zenml",
    "mlflow",
    "optuna",
    "numpy",
    "lm_eval",
    "datasets",
    "great_expectations",
    "agentic_compression.records",
)
WITH_JSON = (
    "acf run",
    "acf spec",
    "acf methods",
    "acf frontier",
    "acf analyze",
    "acf compress",
    "acf evaluate",
    "acf compare",
    "acf doctor",
    "acf registry list",
    "acf export",
)
LEAVES = sorted(path for path, command in commands().items() if not hasattr(command, "commands"))


@pytest.mark.parametrize("path", sorted(commands()))
def test_help_exits_0(path: str) -> None:
    result = CliRunner().invoke(app, [*path.split()[1:], "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


@pytest.mark.parametrize("path", LEAVES)
def test_help_has_an_example_that_the_command_accepts(path: str) -> None:
    text = commands()[path].help or ""
    assert "Example" in text, f"{path} has no example in its docstring"
    calls = acf_calls(text.partition("Example")[2])
    assert any(f"acf {' '.join(call)}".startswith(path) for call in calls), f"no example of {path} calls it"
    assert [problem for call in calls if (problem := problem_with_call(call))] == []


def test_help_of_acf_shows_examples_that_exist() -> None:
    calls = acf_calls(commands()["acf"].epilog or "")
    assert calls
    assert [problem for call in calls if (problem := problem_with_call(call))] == []


@pytest.mark.parametrize("path", sorted(commands()))
def test_every_option_and_argument_says_what_it_is(path: str) -> None:
    silent = [parameter.name for parameter in commands()[path].params if not getattr(parameter, "help", None)]
    assert not silent, f"{path}: no help for {silent}"


@pytest.mark.parametrize("path", WITH_JSON)
def test_what_lists_or_measures_has_json(path: str) -> None:
    options = [option for parameter in commands()[path].params for option in parameter.opts]
    assert "--json" in options


def test_help_of_export_names_every_format() -> None:
    """The formats are in its text: asking the records for them would load pydantic for every help."""
    from agentic_compression.records import EXPORT_FORMATS

    (help_,) = (item.help for item in commands()["acf export"].params if item.name == "format_")
    assert help_ == f"One of {', '.join(EXPORT_FORMATS)}."


def test_import_and_help_load_no_heavy_library() -> None:
    script = (
        "import sys\n"
        "from agentic_compression.cli.main import app\n"
        "from typer.testing import CliRunner\n"
        f"imported = [name for name in {HEAVY!r} if name in sys.modules]\n"
        f"paths = {sorted(commands())!r}\n"
        "codes = [CliRunner().invoke(app, [*path.split()[1:], '--help']).exit_code for path in paths]\n"
        f"helped = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print(imported, helped, set(codes))\n"
    )
    done = _python("-c", script)
    assert done.stdout.strip() == "[] [] {0}", done.stdout + done.stderr


def test_help_of_acf_does_without_pydantic() -> None:
    """A third of its time. Helps of single commands may have it: typer reads default values with it."""
    script = (
        "import sys\n"
        "from agentic_compression.cli.main import app\n"
        "from typer.testing import CliRunner\n"
        "code = CliRunner().invoke(app, ['--help']).exit_code\n"
        "print(code, [name for name in ('pydantic', 'pydantic_core') if name in sys.modules])\n"
    )
    done = _python("-c", script)
    assert done.stdout.strip() == "0 []", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "--no-such-option"], "--no-such-option"),
        (["no-such-command"], "no-such-command"),
        (["rebuild", "study", "-1"], "-1"),
        (["run", "--dataset", "demo"], "--model"),
        (["run", "-m", "demo", "-d", "demo", "--constraint", "speed>9000"], "speed>9000"),
        (["run", "-m", "demo", "-d", "demo", "--episodes", "none"], "--episodes"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(arguments: list[str], named: str, tmp_path: Path) -> None:
    done = _python(str(ROOT / "run.py"), *arguments, home=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert named in lines[0]
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == [], "wrong usage must leave nothing behind"


def test_version_is_the_package_version() -> None:
    from agentic_compression import __version__

    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"acf {__version__}"


def _python(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if home is not None:
        environment["ACF_HOME"] = str(home)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=home or ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
