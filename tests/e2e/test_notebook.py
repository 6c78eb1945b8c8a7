"""The notebook: stored without outputs, and its code runs from top to bottom as a plain script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentic_compression.records import FinalResults, FrontierDocument

ROOT = Path(__file__).resolve().parent.parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
_CHECK = """
assert figure.data[0].x and len(figure.data[0].x) == len(figure.data[0].y) == len(frontier["solutions"])
print("points drawn:", len(figure.data[0].x))
"""


def _cells() -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return cells


def test_notebook_is_valid_and_has_no_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in _cells()]
    assert len(identifiers) == len(set(identifiers))
    for cell in _cells():
        assert cell["cell_type"] in {"code", "markdown"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            compile("".join(cell["source"]), cell["id"], "exec")


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    code = "\n".join("".join(cell["source"]) + "\n" for cell in _cells() if cell["cell_type"] == "code")
    script = tmp_path / "quickstart.py"
    script.write_text(code + _CHECK, encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "ACF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    for name in ("ZENML_CONFIG_PATH", "ZENML_REPOSITORY_PATH", "ZENML_ACTIVE_STACK_ID", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    folder = home / "data" / "experiments" / "quickstart"
    results = FinalResults.model_validate_json((folder / "final_results.json").read_text())
    document = FrontierDocument.model_validate_json((folder / "pareto_frontier.json").read_text())
    assert results.termination_reason == "max_episodes"
    assert results.episodes_run == 3
    assert results.episodes_by_status.get("succeeded", 0) >= 2
    assert document.solutions
    assert f"points drawn: {len(document.solutions)}" in done.stdout
    assert (folder / "pareto_visualization.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "quickstart.py"], "state outside ACF_HOME"
