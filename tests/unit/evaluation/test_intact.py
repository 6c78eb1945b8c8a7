"""What is measured is what was stored: whole, unchanged, and wherever its files really lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agentic_compression.checkpoints.folders import checkpoint_ref
from agentic_compression.checkpoints.manifest import MANIFEST_NAME, CheckpointManifest
from agentic_compression.errors import ModelError
from agentic_compression.evaluation.intact import check_intact
from agentic_compression.records import Strategy


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_path, tmp_path / "own"))


def _ours(folder: Path) -> Path:
    manifest = CheckpointManifest(base_digest="b", strategy=Strategy(), modules={})
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
    return folder


def test_a_snapshot_of_the_hubs_cache_is_intact(folder: Path, tmp_path: Path) -> None:
    """The cache keeps contents under ``blobs`` and a snapshot is a folder of links to them."""
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = tmp_path / "blobs" / str(number)
        blob.parent.mkdir(exist_ok=True)
        path.rename(blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    checkpoint = checkpoint_ref(snapshot, "baseline", shared=True)
    check_intact(checkpoint)
    weights = (snapshot / "model.safetensors").resolve()
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=f"must hold the {checkpoint.size_bytes:,} bytes of its record"):
        check_intact(checkpoint)
    weights.unlink()
    with pytest.raises(ModelError, match=r"must hold model\.safetensors"):
        check_intact(checkpoint)


def test_other_files_do_not_make_up_for_missing_bytes(folder: Path) -> None:
    checkpoint = checkpoint_ref(folder, "baseline", shared=True)
    (folder / "notes.bin").write_bytes(bytes(10_000_000))
    check_intact(checkpoint)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ModelError, match="bytes of its record"):
        check_intact(checkpoint)


def test_a_checkpoint_of_ours_is_compared_by_content(folder: Path) -> None:
    checkpoint = checkpoint_ref(_ours(folder), "k")
    check_intact(checkpoint)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="must have the digest of its record"):
        check_intact(checkpoint)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="does not exist; rebuild it"):
        check_intact(checkpoint)
