"""Safetensors files as they lie on disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from agentic_compression.checkpoints import tensor_files
from agentic_compression.checkpoints.tensor_files import TensorFile, save_tensors, write_tensors


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_may_be_read_by_whom_the_umask_allows(
    mask: int, expected: int, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shards > 1:
        monkeypatch.setattr(tensor_files, "SHARD_BYTES", 16)
    with umask(mask):
        write_tensors(({f"t{index}": torch.full((4,), float(index))} for index in range(shards)), tmp_path)
        (tmp_path / "config.json").write_text("{}")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == shards
    assert {mode(path) for path in tmp_path.iterdir()} == {expected}
    for index, path in enumerate(files):
        with TensorFile(path) as file:
            assert file.read(f"t{index}").tolist() == [float(index)] * 4


def test_a_file_that_is_written_again_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors({"a": torch.zeros(2)}, path)
    path.chmod(0o640)
    save_tensors({"a": torch.ones(2)}, path, {"about": "this"})
    assert mode(path) == 0o640
    with TensorFile(path) as file:
        assert file.read("a").tolist() == [1.0, 1.0]
