"""Whole studies of the demo model through the command line: files, registry, interruption, resume, same seed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from agentic_compression.methods.prefixes import PREFIXES
from agentic_compression.planning.seeds import SEEDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent
STUDY = "demo-demo-seed5"
OPTIONS = ["run", "-m", "demo", "-d", "demo", "-e", "3", "--seed", "5", "--limit", "60"]
GIVEN = 1 + SEEDS
"""Episodes that follow from the seed alone: after them the planner reads measured costs, never twice the same."""


def _environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ZENML_", "MLFLOW_", "ACF_"))}
    return {**kept, "ACF_HOME": str(home), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def _acf(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agentic_compression.cli.main", *arguments]
    return subprocess.run(
        command, env=_environment(home), cwd=home, capture_output=True, text=True, timeout=500, check=False
    )


def _start(home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agentic_compression.cli.main", *OPTIONS]
    return subprocess.Popen(command, env=_environment(home), cwd=home, stderr=subprocess.PIPE, text=True)


def _folder(home: Path) -> Path:
    return home / "data" / "experiments" / STUDY


def _results(home: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(_folder(home).glob("episode_*/results.json"))]


def _accuracies(home: Path) -> list[tuple[str, str, float | None]]:
    return [
        (result["strategy"], result["status"], result["objectives"]["accuracy"] if result["objectives"] else None)
        for result in _results(home)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran through without interruption."""
    home = tmp_path_factory.mktemp("finished")
    done = _acf(home, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "done (max_episodes): 4 episodes" in done.stderr
    return home


def test_all_files_are_written_and_match_their_schemas(finished: Path) -> None:
    folder = _folder(finished)
    for name in ("pareto_frontier", "final_results"):
        schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.schema.json").read_text())
        jsonschema.validate(json.loads((folder / f"{name}.json").read_text()), schema)
    results = json.loads((folder / "final_results.json").read_text())
    assert results["episodes_run"] == 4
    assert len(results["hypervolume_by_episode"]) == 4
    assert results["energy_kwh"] > 0
    assert (folder / "model_spec.json").exists()
    assert "<html" in (folder / "pareto_visualization.html").read_text()
    for result in _results(finished):
        if result["status"] == "succeeded":  # the limit is split: about half is searched on, the rest reported
            assert 30 <= result["sample_count"] <= 90
            assert result["screening"][-1]["passed"]
    for solution in results["solutions"]:
        result = _results(finished)[solution["episode"]]
        assert result["sample_count"] + result["report_accuracy"]["n"] == 120
        assert solution["objectives"]["accuracy"] == result["report_accuracy"]["value"]
        assert solution["search_accuracy"] == result["objectives"]["accuracy"]


def test_frontier_members_are_stored_once_and_registered_under_aliases(finished: Path) -> None:
    document = json.loads((_folder(finished) / "pareto_frontier.json").read_text())
    kept = {solution["checkpoint"] for solution in document["solutions"] if solution["episode"] > 0}
    folders = (finished / "data" / "artifacts" / "checkpoints").glob("[!.]*")
    assert {str(folder) for folder in folders if folder.name != PREFIXES} == kept
    listed = json.loads(_acf(finished, "registry", "list", "--json").stdout)
    assert {version["source"] for version in listed if version["state"] == "frontier"} >= kept
    aliases = {alias for version in listed for alias in version["aliases"]}
    assert aliases == {"champion", "most-accurate", "fastest", "smallest", "leanest", "greenest"}


def test_running_a_finished_study_again_repeats_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in _folder(finished).glob("episode_*/*.json")}
    done = _acf(finished, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in _folder(finished).glob("episode_*/*.json")} == before


def _interrupt(home: Path, episode: int, how: signal.Signals) -> int:
    """Start a study, wait until the episode compresses or evaluates, send the signal; returns the exit code."""
    main = _start(home)
    assert main.stderr is not None
    for line in main.stderr:
        if line.startswith(f"episode {episode} "):
            break
    time.sleep(1.0)
    family = [psutil.Process(main.pid), *psutil.Process(main.pid).children(recursive=True)]
    main.send_signal(how)
    main.stderr.read()
    code = main.wait(timeout=60)
    _, alive = psutil.wait_procs(family[1:], timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    return code


def test_a_study_interrupted_twice_resumes_to_the_same_results(finished: Path, tmp_path: Path) -> None:
    """By Ctrl-C in its first compressed episode, and by SIGKILL in the one after."""
    for episode, how, code in ((1, signal.SIGINT, 130), (2, signal.SIGKILL, -signal.SIGKILL)):
        assert _interrupt(tmp_path, episode, how) == code
        done = {path.parent.name for path in _folder(tmp_path).glob("episode_*/results.json")}
        assert done >= {f"episode_{number:03}" for number in range(episode)}
    resumed = _acf(tmp_path, *OPTIONS)
    assert resumed.returncode == 0, resumed.stderr
    assert "episode 1 " not in resumed.stderr
    assert _accuracies(tmp_path)[:GIVEN] == _accuracies(finished)[:GIVEN]
    assert len(_results(tmp_path)) == len(_results(finished))
    assert not list(_folder(tmp_path).rglob("*.tmp"))


def test_one_more_episode_by_the_same_entry_point(finished: Path) -> None:
    done = _acf(finished, *OPTIONS[:5], "-e", "+1", *OPTIONS[7:])
    assert done.returncode == 0, done.stderr
    assert len(_results(finished)) == 5


def test_zenml_runs_the_pipeline_from_a_study_file(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "parameters:\n  study:\n    name: by-zenml\n    model: demo\n    dataset: demo\n    evaluation: {limit: 40}\n"
    )
    environment = {
        **_environment(tmp_path),
        "ZENML_CONFIG_PATH": str(tmp_path / ".zenml"),
        "ZENML_REPOSITORY_PATH": str(tmp_path / ".zenml"),
        "ZENML_ANALYTICS_OPT_IN": "false",
        "ZENML_DISABLE_INTERACTIVE_INPUT": "true",
    }
    zenml = str(Path(sys.executable).parent / "zenml")
    command = [zenml, "pipeline", "run", "pipelines.episode.compression_episode", "-c", str(study)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "data" / "experiments" / "by-zenml" / "pareto_frontier.json").read_text())
    assert [solution["episode"] for solution in document["solutions"]] == [0]
