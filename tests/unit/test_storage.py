"""Atomic files, digests, confined paths, JSON lines."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.errors import ConfigurationError
from agentic_compression.storage import (
    confined,
    digest_of_files,
    folder_bytes,
    read_json_lines,
    sync,
    sync_tree,
    write_atomically,
)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_json_lines_keep_every_separator_inside_a_text(texts: list[str]) -> None:
    texts = [*texts, "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        path.write_bytes("".join(lines).encode())
        assert [row["text"] for row in read_json_lines(path)] == texts


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def _synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Device and inode of everything that is synced, as the kernel names it."""
    seen: list[tuple[int, int]] = []
    real = os.fsync

    def record(handle: int) -> None:
        facts = os.fstat(handle)
        seen.append((facts.st_dev, facts.st_ino))
        real(handle)

    monkeypatch.setattr("os.fsync", record)
    return seen


def _inode(path: Path) -> tuple[int, int]:
    return path.stat().st_dev, path.stat().st_ino


def test_an_atomic_write_syncs_the_file_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _synced(monkeypatch)
    write_atomically(tmp_path / "new" / "a.json", "text")
    assert seen == [_inode(tmp_path / "new" / "a.json"), _inode(tmp_path / "new")]


def test_a_tree_is_synced_whole_itself_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a", "b/.hidden", "b/c/d", "empty")]
    for path in paths[:-1]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    paths[-1].mkdir()
    seen = _synced(monkeypatch)
    sync_tree(tmp_path)
    assert seen[-1] == _inode(tmp_path)
    assert sorted(seen) == sorted(map(_inode, [*paths, tmp_path / "b", tmp_path / "b" / "c", tmp_path]))


def _open_handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("wait", [sync, sync_tree])
def test_what_the_disk_refuses_is_raised_and_no_handle_stays_open(
    wait: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def fail(handle: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    before = _open_handles()
    with pytest.raises(OSError, match="Input/output"):
        wait(tmp_path)
    assert _open_handles() == before
    with pytest.raises(FileNotFoundError):
        wait(tmp_path / "gone")


def test_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"x")
    second.write_bytes(b"y")
    both = digest_of_files(first, second)
    assert both == digest_of_files(second, first)
    second.write_bytes(b"z")
    assert both != digest_of_files(first, second)
    assert folder_bytes(tmp_path) == 2


@pytest.mark.parametrize("part", ["..", "../x", "/etc/passwd", "a/../../x"])
def test_confined_refuses_to_leave_its_folder(tmp_path: Path, part: str) -> None:
    with pytest.raises(ConfigurationError, match="must stay inside"):
        confined(tmp_path / "root", part)
    assert confined(tmp_path / "root", "a/b") == (tmp_path / "root" / "a" / "b").resolve()
