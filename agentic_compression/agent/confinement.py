"""What another program may name: models and datasets by name, and files below the state root and the working folder."""

from __future__ import annotations

import re
from pathlib import Path

from agentic_compression.errors import ConfigurationError
from agentic_compression.settings import Settings

__all__ = ["allowed_folder", "allowed_reference"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?")
_REGISTERED = re.compile(r"models:/[A-Za-z0-9][A-Za-z0-9_.-]{0,199}[@/][A-Za-z0-9_.-]{1,64}")
_FILES = {".jsonl", ".csv", ".parquet", ".json", ".txt", ".gguf", ".safetensors"}


def allowed_reference(text: str, settings: Settings) -> str:
    """A model, a dataset or a list of datasets with commas, as it was given.

    Args:
        text: from outside.
        settings: of this process.

    Raises:
        ConfigurationError: for a path outside the allowed folders, and for what is neither a path nor a name.
    """
    for part in text.split(",") if not Path(text).exists() else [text]:
        name = part.strip()
        if name and _is_path(name):
            allowed_folder(name, settings)
        elif not (_NAME.fullmatch(name) or _REGISTERED.fullmatch(name)):
            raise ConfigurationError(
                f"{name[:120]!r} is no name of a model or dataset, and no path; see: acf run --help"
            )
    return text


def allowed_folder(text: str, settings: Settings) -> Path:
    """The absolute path, links followed.

    Raises:
        ConfigurationError: when it lies neither below the state root nor below the working folder.
    """
    path = Path(text).expanduser().resolve()
    roots = (settings.root, Path.cwd().resolve())
    if not any(path.is_relative_to(root) for root in roots):
        allowed = " or ".join(str(root) for root in roots)
        raise ConfigurationError(f"a path must lie below {allowed}, got {text[:200]!r}; copy it there")
    return path


def _is_path(name: str) -> bool:
    looks = name.startswith(("/", "~", ".")) or ".." in Path(name).parts or "\\" in name
    return looks or Path(name).suffix.lower() in _FILES or Path(name).exists()
