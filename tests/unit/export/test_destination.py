"""An export is there whole or not at all, and nothing that is no export is ever replaced."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from agentic_compression.errors import ConfigurationError, UnavailableError
from agentic_compression.export import ExportRequest, export_checkpoint, export_name
from agentic_compression.export.build import require_space
from agentic_compression.export.destination import RECORD_NAME, new_export
from agentic_compression.records import ExportRecord
from agentic_compression.settings import Settings
from tests.contracts.tree import ROOT
from tests.unit.export.checkpoints import made


def write(final: Path, strategy: str, *, force: bool = False, files: tuple[str, ...] = ()) -> None:
    """A whole export that says it is of this strategy."""
    record = ExportRecord(
        format="hf", form="as stored", source="x", source_digest="d", strategy=strategy, code_version="0",
        created_at="2026-11-22T00:00:00+00:00", checkpoint_bytes=1, files=dict.fromkeys(files, 1),
    )  # fmt: skip
    with new_export(final, force=force) as folder:
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("1")
        (folder / RECORD_NAME).write_text(record.model_dump_json())


def strategy_of(final: Path) -> str:
    return ExportRecord.model_validate_json((final / RECORD_NAME).read_text()).strategy


def fail(final: Path, *, force: bool = False) -> None:
    with new_export(final, force=force) as folder:
        (folder / RECORD_NAME).write_text("half")
        raise ZeroDivisionError


def overtaken(final: Path) -> None:
    """A slow export whose place is taken by a quicker one."""
    with new_export(final, force=False) as slow:
        (slow / RECORD_NAME).write_text("slow")
        write(final, "quick")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    with new_export(tmp_path / "made", force=False) as folder:
        (folder / RECORD_NAME).write_text("{}")
        assert not (tmp_path / "made").exists()
        assert folder.parent == tmp_path
    assert names(tmp_path) == ["made"]
    assert names(tmp_path / "made") == [RECORD_NAME]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path / "made")
    assert names(tmp_path) == []


def test_force_replaces_an_export_and_keeps_it_when_the_new_one_fails(tmp_path: Path) -> None:
    final = tmp_path / "made"
    write(final, "old")
    with pytest.raises(ConfigurationError, match="exists already"):
        write(final, "new")
    with pytest.raises(ZeroDivisionError):
        fail(final, force=True)
    assert strategy_of(final) == "old"
    write(final, "new", force=True)
    assert strategy_of(final) == "new"
    assert names(tmp_path) == ["made"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_force_never_replaces_what_is_no_export(kind: str, tmp_path: Path) -> None:
    final = tmp_path / "mine"
    if kind == "file":
        final.write_text("precious")
    elif kind == "folder":
        final.mkdir()
        (final / "precious").write_text("precious")
    else:
        write(tmp_path / "other", "{}")
        final.symlink_to(tmp_path / "other")
    with pytest.raises(ConfigurationError, match="earlier exports only"):
        write(final, "new", force=True)
    assert final.exists()


def test_force_never_removes_what_the_export_did_not_write(tmp_path: Path) -> None:
    final = tmp_path / "made"
    write(final, "old", files=("model.safetensors", "deep/tokenizer.json"))
    (final / "deep" / "thesis.txt").write_text("precious")
    (final / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"did not write: deep/thesis\.txt, empty;"):
        write(final, "new", force=True)
    assert (final / "deep" / "thesis.txt").read_text() == "precious"
    (final / "deep" / "thesis.txt").unlink()
    (final / "empty").rmdir()
    write(final, "new", force=True)
    assert strategy_of(final) == "new"
    assert names(final) == [RECORD_NAME]


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '{"format": "hf"}'])
def test_a_file_of_that_name_makes_no_export(text: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / RECORD_NAME).write_text(text)
    with pytest.raises(ConfigurationError, match="earlier exports only"):
        write(tmp_path / "data", "new", force=True)
    assert (tmp_path / "data" / RECORD_NAME).read_text() == text


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2])
def test_an_interrupt_at_a_rename_loses_neither_export(
    nth: int, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C just before or just after one of the two renames that replace an export."""
    final = tmp_path / "made"
    write(final, "old")
    rename, calls = Path.rename, 0

    def interrupted(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            raise KeyboardInterrupt
        moved = rename(path, target)
        if calls == nth:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(final, "new", force=True)
    assert strategy_of(final) == ("new" if (nth, when) == (2, "after") else "old")
    assert names(tmp_path) == ["made"]


@pytest.mark.parametrize(
    "name", [".small.v2.abcd1234.export-partial", ".small.abcd1234.partial", ".small.ABCD1234.export-partial"]
)
def test_folders_of_other_names_are_not_tidied_up(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "half").write_text("half")
    write(tmp_path / "small", "new")
    assert names(tmp_path) == sorted([name, "small"])


def test_a_folder_that_is_taken_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another export tidies up between the making and the locking of a folder, twice."""
    made: list[Path] = []
    real = tempfile.mkdtemp

    def making(**arguments: Any) -> str:
        path = Path(real(**arguments))
        made.append(path)
        if len(made) == 1:
            path.rmdir()
        elif len(made) == 2:
            monkeypatch.setattr(fcntl, "flock", removing)
        return str(path)

    flock = fcntl.flock

    def removing(handle: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        made[-1].rmdir()
        flock(handle, operation)

    monkeypatch.setattr(tempfile, "mkdtemp", making)
    write(tmp_path / "made", "new")
    assert len(made) == 3
    assert names(tmp_path) == ["made"]


@pytest.mark.parametrize("output", ["checkpoint", "checkpoint/inside", "."])
def test_checkpoint_and_export_hold_not_each_other(output: str, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "checkpoint"
    made("rtn4", folder)
    nobody: Any = None
    final = (tmp_path / "home" / output).resolve()
    if output == ".":  # an export that names the checkpoint's files as its own
        files = {path.relative_to(final).as_posix(): 1 for path in folder.iterdir()}
        record = ExportRecord(
            format="hf", form="", source="x", source_digest="d", strategy="", code_version="0", created_at="",
            checkpoint_bytes=1, files=files,
        )  # fmt: skip
        (final / RECORD_NAME).write_text(record.model_dump_json())
    request = ExportRequest(source=str(folder), format="recipe", output=final, force=True)
    with pytest.raises(ConfigurationError, match=r"earlier exports only|must not"):
        export_checkpoint(request, Settings(ACF_HOME=tmp_path / "state"), nobody)
    assert (folder / "model.safetensors").is_file()


def test_a_killed_export_leaves_no_destination_and_the_next_one_tidies_up(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from agentic_compression.export.destination import new_export\n"
        "with new_export(Path(sys.argv[1]), force=False) as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "made")]
    done = subprocess.run(command, cwd=ROOT, timeout=120, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = names(tmp_path)
    assert len(left) == 1
    assert left[0].startswith(".made.")
    assert left[0].endswith(".export-partial")
    write(tmp_path / "made", "{}")
    assert names(tmp_path) == ["made"]


def test_an_export_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    """As a kill between the two renames leaves it."""
    write(tmp_path / "made", "old")
    (tmp_path / ".made.abcd_123.export-partial").mkdir()
    (tmp_path / "made").rename(tmp_path / ".made.abcd_123.export-partial" / "replaced")
    with pytest.raises(ConfigurationError, match="exists already"):
        write(tmp_path / "made", "new")
    assert strategy_of(tmp_path / "made") == "old"
    assert names(tmp_path) == ["made"]


def test_the_folder_of_a_living_export_is_left_alone(tmp_path: Path) -> None:
    with new_export(tmp_path / "made", force=False) as first:
        (first / RECORD_NAME).write_text("first")
        with pytest.raises(ZeroDivisionError):
            fail(tmp_path / "made")
        assert (first / RECORD_NAME).exists()
    assert (tmp_path / "made" / RECORD_NAME).read_text() == "first"


def test_two_exports_to_one_place_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="exists already"):
        overtaken(tmp_path / "made")
    assert strategy_of(tmp_path / "made") == "quick"
    assert names(tmp_path) == ["made"]


def test_a_full_disk_is_said_beforehand(tmp_path: Path) -> None:
    state = os.statvfs(tmp_path)
    with pytest.raises(UnavailableError, match="make room"):
        require_space(tmp_path, state.f_bavail * state.f_frsize)
    require_space(tmp_path, 0)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("models:/demo--demo@smallest", "demo--demo-smallest"),
        ("models:/demo--demo/3", "demo--demo-3"),
        ("demo", "demo"),
        ("/x/../y/my model", "my-model"),
        ("models:/..@..", "model"),
    ],
)
def test_the_default_name_is_a_plain_one(source: str, name: str) -> None:
    assert export_name(source) == name
