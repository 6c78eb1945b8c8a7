"""Out into one file and back, line by line; what cannot be true is set aside with its line."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.errors import ConfigurationError
from agentic_compression.memory import (
    Workspace,
    add_experiences,
    export_experiences,
    forget,
    import_experiences,
    list_quarantined,
    read_experiences,
    to_forget,
)
from agentic_compression.memory.experiments import canonical_text
from agentic_compression.records import Experience
from tests.unit.memory.experiences import experiences, failed, make_experience


def _filled(folder: Path, *items: Experience) -> Workspace:
    workspace = Workspace(folder / "workspace")
    with workspace.lock():
        add_experiences(workspace, items)
    return workspace


@settings(max_examples=20, deadline=None)
@given(st.lists(experiences(), min_size=1, max_size=6))
def test_export_forget_import_gives_back_the_same(items: list[Experience]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace, file = _filled(Path(folder), *items), Path(folder) / "all.jsonl"
        before = read_experiences(workspace)
        assert export_experiences(workspace, file) == len(before)
        assert forget(workspace, before, everything=True).experiences == len(before)
        assert read_experiences(workspace) == {}
        done = import_experiences(workspace, file)
        assert (done.lines, done.added, done.known, done.quarantined) == (len(before), len(before), 0, 0)
        assert read_experiences(workspace) == before
        again = import_experiences(workspace, file)
        assert (again.added, again.known) == (0, len(before))


def test_bad_lines_are_reported_with_number_and_reason_and_the_others_come_in(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    good, other = canonical_text(make_experience()), canonical_text(failed("two"))
    absurd = json.dumps({**json.loads(good), "ratios": {"latency_ms": 1e9}})
    lines = [good, "{", "", absurd, "x" * 300_000, good, other]
    file = tmp_path / "in.jsonl"
    file.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe")
    done = import_experiences(workspace, file)
    assert (done.lines, done.added, done.known, done.quarantined) == (7, 2, 1, 4)
    assert [item.origin for item in done.reasons] == [f"in.jsonl, line {number}" for number in (2, 4, 5, 8)]
    assert "latency_ms" in done.reasons[1].reason
    assert set(list_quarantined(workspace)) == set(done.reasons)
    assert sum(path.stat().st_size for path in workspace.quarantine.iterdir()) < 100_000
    assert sorted(item.study for item in read_experiences(workspace).values()) == ["one", "two"]


def test_a_file_that_is_not_there_is_a_wrong_option(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ConfigurationError, match="no file"):
            import_experiences(Workspace(tmp_path / "workspace"), path)


def test_export_of_nothing_is_an_empty_file(tmp_path: Path) -> None:
    assert export_experiences(Workspace(tmp_path / "none"), tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_what_is_forgotten_is_what_was_named() -> None:
    known = {
        "1": make_experience("a", at="2026-11-01T00:00:00+00:00"),
        "2": make_experience("b", at="2026-10-01T00:00:00+00:00", digest="model"),
        "3": make_experience("b", at=""),
        "4": make_experience("b", at="2026-09-01T00:00:00"),
    }
    now = datetime(2026, 11, 2, tzinfo=UTC)
    assert to_forget(known, study="b") == ("2", "3", "4")
    assert to_forget(known, digest="1") == ("1",)
    assert to_forget(known, digest="model") == ("2",)
    assert to_forget(known, older_than_days=10, now=now) == ("2", "4")
    assert to_forget(known, older_than_days=1, now=now) == ("2", "4")
    assert to_forget(known, older_than_days=0.5, now=now) == ("1", "2", "4")
    assert to_forget(known) == ("1", "2", "3", "4")
    assert to_forget(known, study="none") == ()
