"""Experiences on disk: named by content, kept once, damaged ones set aside and never fatal."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.memory import (
    Workspace,
    add_experiences,
    delete_experiences,
    list_quarantined,
    read_experiences,
    recalled_from,
)
from agentic_compression.memory.experiments import canonical_text
from agentic_compression.memory.validation import clean_text, problem_with, read_experience
from agentic_compression.records import Experience, content_digest
from tests.unit.memory.experiences import experiences, failed, make_experience, make_situation


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def _add(workspace: Workspace, *items: Experience) -> int:
    with workspace.lock():
        return len(add_experiences(workspace, items))


def _put(workspace: Workspace, text: str | bytes, name: str | None = None) -> Path:
    """A file as it would be named if it were genuine."""
    data = text.encode() if isinstance(text, str) else text
    path = workspace.experiments / (name or f"{hashlib.sha256(data).hexdigest()[:16]}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _changed(**changes: object) -> str:
    value = {**make_experience().model_dump(mode="json"), **changes}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_a_file_is_named_by_the_digest_of_its_content(workspace: Workspace) -> None:
    experience = make_experience(objective="klein und schnell, größer nicht")
    assert _add(workspace, experience) == 1
    (path,) = workspace.experiments.glob("*.json")
    assert path.stem == content_digest(experience)
    assert path.stem == hashlib.sha256(path.read_bytes().rstrip(b"\n")).hexdigest()[:16]
    assert read_experiences(workspace) == {path.stem: experience}


@settings(max_examples=25, deadline=None)
@given(st.lists(experiences(), max_size=6))
def test_what_is_added_is_read_and_adding_again_changes_nothing(items: list[Experience]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        first = _add(workspace, *items)
        once = read_experiences(workspace)
        assert len(once) == first <= len(items)
        assert all(item in items for item in once.values())
        assert _add(workspace, *items) == 0
        assert read_experiences(workspace) == once
        assert not list_quarantined(workspace)


def test_the_same_measurement_written_differently_is_kept_once(workspace: Workspace) -> None:
    assert _add(workspace, make_experience(), make_experience(objective="told later")) == 1
    assert _add(workspace, make_experience(objective="told later still")) == 0
    assert _add(workspace, make_experience(at="2026-11-02T00:00:00+00:00")) == 1


def test_reading_an_absent_memory_creates_nothing(workspace: Workspace) -> None:
    assert read_experiences(workspace) == {}
    assert not workspace.root.exists()


def test_what_cannot_be_true_is_not_written(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="latency_ms"):
        _add(workspace, make_experience(ratios={"latency_ms": 1e9}))
    assert not list(workspace.experiments.glob("*.json"))


BAD = {
    "no JSON": "{",
    "empty": "",
    "not UTF-8": b'{"study": "\xff"}',
    "another type": "[]",
    "missing field": '{"study": "one"}',
    "unknown field": _changed(weights="x"),
    "NaN": _changed(accuracy=float("nan")),
    "NaN as text": _changed(accuracy="NaN"),
    "infinite ratio": _changed(ratios={"latency_ms": float("inf")}),
    "infinite kl": _changed(kl=float("inf")),
    "ratio of nothing": _changed(ratios={"latency_ms": 0.0}),
    "absurd ratio": _changed(ratios={"model_size_gb": 1e7}),
    "negative ratio": _changed(ratios={"model_size_gb": -0.5}),
    "unknown ratio": _changed(ratios={"price": 0.5}),
    "accuracy above 1": _changed(accuracy=1.5),
    "negative kl": _changed(kl=-1.0),
    "too many parameters": _changed(parameters=10**16),
    "unknown status": _changed(status="great"),
    "failed with ratios": _changed(status="oom"),
    "study as a path": _changed(study="../../etc/passwd"),
    "digest as a path": _changed(digest="../x"),
    "no time": _changed(at="yesterday"),
    "control characters": _changed(model="m\x1b[2J"),
    "name of two lines": _changed(model="m\nn"),
    "turned writing direction": _changed(objective="a\u202eb"),
    "endless text": _changed(objective="x" * 5000),
    "baseline": _changed(strategy={"stages": [], "name": None}),
    "infinite parameter": _changed(
        strategy={"name": None, "stages": [{"method": "rtn", "parameters": {"bits": float("inf")}, "when": None}]}
    ),
    "method as a path": _changed(
        strategy={"name": None, "stages": [{"method": "../rtn", "parameters": {}, "when": None}]}
    ),
    "half a character": json.dumps({**make_experience().model_dump(mode="json"), "model": "\ud800"}),
    "nested without end": "[" * 50_000,
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_damaged_or_not_believable_is_set_aside_with_its_reason(workspace: Workspace, case: str) -> None:
    good = make_experience()
    _add(workspace, good)
    path = _put(workspace, BAD[case])
    assert list(read_experiences(workspace).values()) == [good]
    assert not path.exists()
    (found,) = list_quarantined(workspace)
    assert found.reason
    assert found.origin == path.name
    kept = (workspace.quarantine / found.kept_as).read_bytes()
    assert kept == (BAD[case].encode() if isinstance(BAD[case], str) else BAD[case])
    assert list(read_experiences(workspace).values()) == [good]


def test_a_changed_number_is_noticed_by_the_name(workspace: Workspace) -> None:
    _add(workspace, make_experience())
    (path,) = workspace.experiments.glob("*.json")
    path.write_text(path.read_text().replace("0.58", "0.59"))
    assert read_experiences(workspace) == {}
    (found,) = list_quarantined(workspace)
    assert "changed or damaged" in found.reason


def test_a_file_that_was_only_reformatted_stays(workspace: Workspace) -> None:
    _add(workspace, make_experience())
    (path,) = workspace.experiments.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    assert list(read_experiences(workspace).values()) == [make_experience()]


def test_links_pipes_folders_and_huge_files_are_set_aside(workspace: Workspace, tmp_path: Path) -> None:
    _add(workspace, make_experience())
    (genuine,) = workspace.experiments.glob("*.json")
    outside = tmp_path / "outside.json"
    outside.write_text(genuine.read_text())
    (workspace.experiments / f"{'1' * 16}.json").symlink_to(outside)
    os.mkfifo(workspace.experiments / f"{'2' * 16}.json")
    (workspace.experiments / f"{'3' * 16}.json").mkdir()
    with (workspace.experiments / f"{'4' * 16}.json").open("wb") as file:
        file.truncate(10 * 2**30)  # sparse: reading it whole would take 10 GB
    assert list(read_experiences(workspace)) == [genuine.stem]
    assert len(list_quarantined(workspace)) == 4
    assert outside.exists()
    assert [path.name for path in workspace.experiments.iterdir()] == [genuine.name]


def test_a_link_to_a_genuine_experience_is_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    _add(workspace, make_experience())
    (genuine,) = workspace.experiments.glob("*.json")
    outside = genuine.rename(tmp_path / "outside.json")
    genuine.symlink_to(outside)
    assert read_experiences(workspace) == {}
    (found,) = list_quarantined(workspace)
    assert "symbolic link" in found.reason
    assert (workspace.quarantine / found.kept_as).is_symlink()
    assert outside.is_file()


def test_thousands_are_read_and_recalled_within_a_second_of_processor_time(workspace: Workspace) -> None:
    items = [make_experience(f"s-{n // 20}", n % 20, f"rtn:bits={2 + n % 7}") for n in range(3000)]
    assert _add(workspace, *items) == 3000
    taken = []
    for _ in range(3):  # the least of three: whatever shares the core makes the others longer
        begun = time.process_time()
        found = read_experiences(workspace)
        assert len(found) == 3000
        assert len(recalled_from(found.values(), make_situation())) == 64
        taken.append(time.process_time() - begun)
    assert min(taken) < 1.0


@pytest.mark.parametrize("name", ["..json", "a b.json", "%2e%2e%2fx.json", "x\n.json", "\udcff.json", "-rf", "0" * 200])
def test_names_with_tricks_are_set_aside_under_harmless_ones(workspace: Workspace, name: str) -> None:
    path = _put(workspace, canonical_text(make_experience()), name)
    assert read_experiences(workspace) == {}
    assert path.exists() == name.startswith(".")  # hidden files are passed over
    for kept in workspace.quarantine.glob("*"):
        assert kept.parent == workspace.quarantine
        assert set(kept.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")


def test_a_file_in_place_of_the_folder_is_set_aside(workspace: Workspace) -> None:
    workspace.root.mkdir()
    workspace.experiments.write_text("x")
    assert read_experiences(workspace) == {}
    assert _add(workspace, make_experience()) == 1


def test_deleting_takes_names_of_experiences_only(workspace: Workspace, tmp_path: Path) -> None:
    _add(workspace, make_experience(), failed(episode=2))
    outside = tmp_path / "x.json"
    outside.write_text("x")
    with workspace.lock():
        assert delete_experiences(workspace, ["../../x", "nothing", *read_experiences(workspace)]) == 2
    assert outside.exists()
    assert read_experiences(workspace) == {}


@given(st.text(st.characters(), max_size=200))
def test_cleaned_text_is_accepted(text: str) -> None:
    name = clean_text(text, 128)
    experience = make_experience(objective=clean_text(text, 4000, prose=True), model=name, family=name, tasks=(name,))
    assert problem_with(experience) is None
    assert read_experience(canonical_text(experience).encode()) == experience
