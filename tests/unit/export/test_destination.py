"""An export is there whole or not at all, and nothing that is no export is ever replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentic_compression.errors import ConfigurationError, UnavailableError
from agentic_compression.export import export_name
from agentic_compression.export.build import require_space
from agentic_compression.export.destination import RECORD_NAME, new_export
from tests.contracts.tree import ROOT


def write(final: Path, text: str, *, force: bool = False) -> None:
    with new_export(final, force=force) as folder:
        (folder / RECORD_NAME).write_text(text)


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
    assert (final / RECORD_NAME).read_text() == "old"
    write(final, "new", force=True)
    assert (final / RECORD_NAME).read_text() == "new"
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
    write(tmp_path / "made", "{}")
    assert names(tmp_path) == ["made"]


def test_an_export_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    """As a kill between the two renames leaves it."""
    write(tmp_path / "made", "old")
    (tmp_path / ".made.x.partial").mkdir()
    (tmp_path / "made").rename(tmp_path / ".made.x.partial" / "replaced")
    with pytest.raises(ConfigurationError, match="exists already"):
        write(tmp_path / "made", "new")
    assert (tmp_path / "made" / RECORD_NAME).read_text() == "old"
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
    assert (tmp_path / "made" / RECORD_NAME).read_text() == "quick"
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
