"""Keep canonical items as JSON lines under a content key, each file written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.records import content_digest
from agentic_compression.settings import Settings
from agentic_compression.storage import confined, write_atomically

__all__ = ["StoredItems", "store_items"]


@dataclass(frozen=True)
class StoredItems:
    """Files of one stored dataset: absolute paths and content digests by name, and the digest of all of them."""

    folder: Path
    digest: str
    paths: Mapping[str, Path]
    digests: Mapping[str, str]


def store_items(settings: Settings, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> StoredItems:
    """Write ``{name}.jsonl`` for every list of items under ``artifacts/datasets/<digest>/``.

    Writing the same content again finds it there and changes nothing.
    """
    contents = {name: _encode(items) for name, items in files.items()}
    digests = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in contents.items()}
    digest = content_digest(digests)
    folder = settings.artifacts / "datasets" / digest
    paths = {name: confined(folder, f"{name}.jsonl") for name in contents}
    for name, content in contents.items():
        path = paths[name]
        if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
            write_atomically(path, content)
    return StoredItems(folder=folder, digest=digest, paths=paths, digests=digests)


def _encode(items: Sequence[Mapping[str, Any]]) -> bytes:
    lines = [json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for item in items]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
