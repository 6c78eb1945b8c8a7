"""Every package can be imported on its own, first, in a fresh interpreter, without dragging in the heavy libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.contracts.tree import ROOT, package_folders

HEAVY = ("torch", "transformers", "zenml", "mlflow", "optuna", "lm_eval", "datasets", "great_expectations", "plotly")
NAMES = [".".join(folder.relative_to(ROOT).parts) for folder in package_folders()]

# One process for all: it forks before it has imported anything of the project, once for each package.
_DRIVER = """
import importlib, json, os, sys, traceback
names, heavy = json.loads(sys.argv[1])
children = {}
for name in names:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        sys.stdout = sys.stderr = open(os.devnull, "w")
        try:
            importlib.import_module(name)
            found = {"error": None, "loaded": [item for item in heavy if item in sys.modules]}
        except BaseException:
            found = {"error": traceback.format_exc(limit=-4), "loaded": []}
        found["third_party"] = sorted({item.partition(".")[0] for item in sys.modules} - set(sys.stdlib_module_names))
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    children[name] = (pid, reading)
results = {}
for name, (pid, reading) in children.items():
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    results[name] = json.loads(text) if text else {"error": f"exit {status}", "loaded": [], "third_party": []}
print(json.dumps(results))
"""


@cache
def _imports(home: Path) -> dict[str, dict[str, object]]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ACF_HOME": str(home),
        "ZENML_CONFIG_PATH": str(home / ".zenml"),
        "ZENML_REPOSITORY_PATH": str(home),
        "ZENML_ANALYTICS_OPT_IN": "false",
    }
    command = [sys.executable, "-c", _DRIVER, json.dumps([NAMES, HEAVY])]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, object]] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What importing each package alone did."""
    return _imports(tmp_path_factory.mktemp("imports"))


@pytest.mark.parametrize("name", NAMES)
def test_package_imports_on_its_own(name: str, imports: dict[str, dict[str, object]]) -> None:
    assert imports[name]["error"] is None, imports[name]["error"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("agentic_compression")])
def test_package_loads_no_heavy_library(name: str, imports: dict[str, dict[str, object]]) -> None:
    assert imports[name]["loaded"] == []


def test_records_need_pydantic_alone(imports: dict[str, dict[str, object]]) -> None:
    """The arrows between stages can be read by a script that installs nothing but pydantic."""
    third_party = imports["agentic_compression.records"]["third_party"]
    assert isinstance(third_party, list)
    allowed = ("agentic_compression", "pydantic", "pydantic_core", "annotated_types", "typing_extensions")
    own = [name for name in third_party if not name.startswith(("_", "distutils-"))]
    assert [name for name in own if name not in (*allowed, "typing_inspection", "sitecustomize")] == []
