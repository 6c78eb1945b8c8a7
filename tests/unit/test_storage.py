"""Atomic files, digests, confined paths, JSON lines."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.errors import ConfigurationError
from agentic_compression.storage import confined, digest_of_files, folder_bytes, read_json_lines, write_atomically


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
