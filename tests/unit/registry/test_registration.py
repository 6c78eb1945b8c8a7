"""Registering does not fail for an odd dataset file, and clears up after processes that were killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentic_compression.records import DatasetSpec, DatasetTask, StudyConfig
from agentic_compression.registry import list_versions
from agentic_compression.registry.mlflow_model import DEFAULT_EXAMPLE
from agentic_compression.settings import get_settings
from agentic_compression.study import episode
from agentic_compression.study.retention import drop_dominated
from agentic_compression.study.version_evidence import StudyEvidence
from tests.unit.registry.desks import Studio, frontier

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0)}
ODD = {
    "empty": b"",
    "blank first line": b"\n",
    "no JSON": b"{broken\n",
    "no object": b"[1, 2]\n",
    "no question": b'{"id": 1}\n',
    "no text": b'{"question": 7}\n',
    "only spaces": b'{"question": "  "}\n',
    "half a surrogate pair": b'{"question": "\\ud83d"}\n',
    "not UTF-8": b'{"question": "\xff\xfe"}\n',
    "deep": b'{"question": ' + b"[" * 100_000 + b"\n",
}


def _dataset(path: Path, kind: Any = "generation") -> DatasetSpec:
    task = DatasetTask.model_construct(name="t", kind=kind, path=str(path), items=1, digest="d", weight=1.0)
    return DatasetSpec.model_construct(dataset="d", tasks=(task,), digest="d")


@pytest.mark.parametrize("content", ODD.values(), ids=ODD.keys())
def test_an_odd_dataset_gives_the_fixed_prompt_and_the_version_says_so(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    monkeypatch.setattr(episode, "dataset_of", lambda *_: _dataset(path))
    studio.promote(studio.study(POINTS), (0,), knee=0)
    (version,) = list_versions(studio.client, studio.name)
    assert version.tags["acf.example"].startswith("a fixed prompt, the dataset gave none: ")
    (example,) = (get_settings().artifacts / "models" / studio.name).glob("*/input_example.json")
    assert DEFAULT_EXAMPLE in example.read_text()


@pytest.mark.parametrize("kind", ["text", "generation", "benchmark"])
def test_a_good_dataset_gives_its_own(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "items.jsonl"
    words = " ".join(f"w{number}" for number in range(500))
    path.write_text(f'{{"question": "{words}", "text": "{words}"}}\n')
    monkeypatch.setattr(episode, "dataset_of", lambda *_: _dataset(path, kind))
    config = StudyConfig(model="demo", dataset="d", name="s")
    found, reason = StudyEvidence(studio.bench, config).example("s")
    if kind == "benchmark":
        assert (found, "benchmarks" in reason) == (DEFAULT_EXAMPLE, True)
        return
    assert reason == ""
    assert found == (" ".join(words.split()[:12]) if kind == "text" else words[:400])


def _leftover(studio: Studio) -> Path:
    """What a process leaves that is killed between its links and its description."""
    folder = get_settings().artifacts / "models" / studio.name / ".abc-123.x7.partial"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "model.safetensors").write_bytes(b"weights")
    return folder


def test_leftovers_of_a_killed_registration_go_with_the_next(studio: Studio) -> None:
    folder = _leftover(studio)
    studio.promote(studio.study(POINTS), (0, 1))
    assert not folder.exists()
    assert len(list(folder.parent.glob("*/MLmodel"))) == 2


def test_leftovers_of_a_killed_registration_go_with_a_retention(studio: Studio) -> None:
    study = studio.study(POINTS)
    studio.promote(study, (0, 1))
    folder = _leftover(studio)
    with studio.bench.lease.alone():  # somebody works: nothing is deleted
        drop_dominated(studio.bench, frontier(study, studio.records(study)), studio.records(study))
    assert folder.exists()
    drop_dominated(studio.bench, frontier(study, studio.records(study)), studio.records(study))
    assert not folder.exists()
    assert len(list(folder.parent.glob("*/MLmodel"))) == 2


def test_links_out_of_the_folder_are_not_followed(studio: Studio, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    models = get_settings().artifacts / "models" / studio.name
    models.mkdir(parents=True)
    (models / ".mine.partial").symlink_to(mine)
    studio.promote(studio.study(POINTS), (0,), knee=0)
    assert mine.is_dir()
