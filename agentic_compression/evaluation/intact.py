"""Whether a stored checkpoint still is what its record says."""

from __future__ import annotations

from pathlib import Path

from agentic_compression.checkpoints.folders import shipped_files
from agentic_compression.checkpoints.manifest import MANIFEST_NAME
from agentic_compression.errors import ModelError
from agentic_compression.records import CheckpointRef
from agentic_compression.storage import digest_of_files

__all__ = ["check_intact"]


def check_intact(checkpoint: CheckpointRef) -> None:
    """Refuse a checkpoint that is gone, cut short or changed since it was stored.

    What must be shipped counts, as in the record: a folder of links to the files, as the Hub's cache makes it, is
    whole, and other files do not make up for missing bytes. The content of a checkpoint that this framework wrote is
    read and compared with its digest: a changed weight would otherwise be measured as the strategy's own accuracy.

    Raises:
        ModelError: with what to do.
    """
    folder, size = Path(checkpoint.path), checkpoint.size_bytes
    if not folder.is_dir():
        raise ModelError(f"checkpoint folder {folder} does not exist; rebuild it (acf rebuild STUDY EPISODE)")
    files = shipped_files(folder)
    held = sum(path.stat().st_size for path in files)
    if held < size:
        raise ModelError(f"{folder} must hold the {size:,} bytes of its record, got {held:,}; rebuild the checkpoint")
    if checkpoint.shared or not (folder / MANIFEST_NAME).is_file():
        return
    digest = digest_of_files(*files)
    if digest != checkpoint.digest:
        raise ModelError(
            f"{folder} must have the digest of its record, {checkpoint.digest}, got {digest}: it was changed or "
            "damaged since; delete the folder and rebuild the checkpoint (acf rebuild STUDY EPISODE)"
        )
