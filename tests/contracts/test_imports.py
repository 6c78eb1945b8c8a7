"""Every package can be imported on its own, first, in a fresh interpreter, without dragging in the heavy libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.contracts.tree import ROOT, package_folders

HEAVY = ("torch", "transformers", "zenml", "mlflow", "optuna", "lm_eval", "datasets", "great_expectations", "plotly")
NAMES = [".".join(folder.relative_to(ROOT).parts) for folder in package_folders()]
ADAPTERS = [name for name in (*NAMES, "pipelines.episode") if not name.startswith("agentic_compression")]
LIGHT = [name for name in NAMES if name not in ADAPTERS]
PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}

Imports = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> Imports:
    """What importing each package alone did; one process for all (see ``import_alone``)."""
    home = tmp_path_factory.mktemp("imports")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ACF_HOME": str(home),
        "ZENML_CONFIG_PATH": str(home / ".zenml"),
        "ZENML_REPOSITORY_PATH": str(home),
        "ZENML_ANALYTICS_OPT_IN": "false",
    }
    arguments = json.dumps([LIGHT, ADAPTERS, HEAVY])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "contracts" / "import_alone.py"), arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: Imports = json.loads(done.stdout)
    return results


def test_every_package_imports_on_its_own(imports: Imports) -> None:
    errors = {name: found["error"] for name, found in imports.items() if found["error"] is not None}
    assert not errors, "\n".join(f"import {name}:\n{error}" for name, error in errors.items())
    assert set(imports) == {*LIGHT, *ADAPTERS}


def test_no_package_of_the_domain_loads_a_heavy_library(imports: Imports) -> None:
    assert {name: imports[name]["loaded"] for name in LIGHT if imports[name]["loaded"]} == {}


def test_records_need_pydantic_alone(imports: Imports) -> None:
    """A script that reads the records installs nothing else."""
    beside = set(imports["agentic_compression.records"]["third_party"]) - set(
        imports["agentic_compression"]["third_party"]
    )
    assert {name for name in beside if not name.startswith("_")} <= PYDANTIC
