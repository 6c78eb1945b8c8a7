"""Reading JSON-lines files of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.demo.scoring import read_rows


@pytest.mark.parametrize("end", ["", "\n"])
def test_rows_are_read_whether_or_not_the_file_ends_with_a_newline(tmp_path: Path, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "x\u2028y"}' + end, encoding="utf-8")
    assert read_rows(path) == [{"a": 1}, {"a": "x\u2028y"}]
    assert read_rows(path, 1) == [{"a": 1}]
