"""Checkpoint folders: written whole or not at all, and what of a folder must be shipped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentic_compression.checkpoints.manifest import MANIFEST_NAME
from agentic_compression.errors import ModelError
from agentic_compression.records import CheckpointRef
from agentic_compression.storage import digest_of_files, sync, sync_tree

__all__ = ["GGUF_NAME", "checkpoint_ref", "new_folder", "shipped_files", "weight_files"]

GGUF_NAME = "model.gguf"

_SHIPPED_NAMES = frozenset(
    {
        "config.json",
        "generation_config.json",
        MANIFEST_NAME,
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, sorted by name, or its GGUF file; ``adapter_*.safetensors`` do not count.

    Raises:
        ModelError: when there are none; pickled ``.bin`` weights are refused.
    """
    if (folder / GGUF_NAME).is_file():
        return [folder / GGUF_NAME]
    found = sorted(
        path for path in folder.glob("*.safetensors") if path.is_file() and not path.name.startswith("adapter_")
    )
    if found:
        return found
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    hint = f"found only pickled weights ({pickled[0]}), which are never loaded" if pickled else "found none"
    raise ModelError(
        f"{folder} must hold model.safetensors, {hint}; save the model with save_pretrained(safe_serialization=True)"
    )


def shipped_files(folder: Path) -> list[Path]:
    """What one must ship to run the model: weights, their index, config, generation config, tokenizer, manifest.

    A GGUF file holds the tokenizer, so the tokenizer's files beside it, which measuring uses, do not count.

    Raises:
        ModelError: when there is no ``config.json`` or no weights in safetensors or GGUF.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} must be a model folder with config.json, got none; check the path")
    weights = weight_files(folder)
    if weights == [folder / GGUF_NAME]:
        return [*weights, *(path for path in (folder / "config.json", folder / MANIFEST_NAME) if path.is_file())]
    index = [path for path in sorted(folder.glob("*.safetensors.index.json")) if path.is_file()]
    rest = sorted(path for path in folder.iterdir() if path.is_file() and path.name in _SHIPPED_NAMES)
    return [*weights, *index, *rest]


def checkpoint_ref(
    folder: Path, strategy_key: str, loads_with: tuple[str, ...] = ("acf", "transformers"), *, shared: bool = False
) -> CheckpointRef:
    """Reference to a stored checkpoint; ``size_bytes`` and ``digest`` cover :func:`shipped_files` only.

    Args:
        folder: the checkpoint folder.
        strategy_key: key of the strategy that made it.
        loads_with: runtimes that can load it.
        shared: the folder is the user's own and must never be deleted.

    Raises:
        ModelError: when the folder is not a model folder.
    """
    files = shipped_files(folder)
    return CheckpointRef(
        path=str(folder.resolve()),
        digest=digest_of_files(*files),
        size_bytes=sum(path.stat().st_size for path in files),
        strategy_key=strategy_key,
        loads_with=loads_with,
        shared=shared,
    )


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary sibling to write into, renamed to ``final`` once everything is on the disk.

    A process killed at any moment leaves either no ``final`` or a complete one. When another process has put the same
    checkpoint there first, its folder stands and this one is dropped: both have the same content key.

    Args:
        final: the folder to create.

    Yields:
        The temporary folder, named ``.<final>.<random>.partial``.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".partial"))
    try:
        yield temporary
        temporary.chmod(0o755)
        sync_tree(temporary)
        try:
            temporary.rename(final)
        except OSError:
            if not _is_complete(final):
                raise
        sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    """Whether a checkpoint of this framework stands there: its manifest, configuration and weights."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {"config.json", "acf_checkpoint.json"} <= names and any(
        name == GGUF_NAME or name.endswith(".safetensors") for name in names
    )
