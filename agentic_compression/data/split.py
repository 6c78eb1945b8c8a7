"""Seeded splits by hash: the same file and seed give the same split; equal texts never land on both sides."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["Document", "fingerprint", "first_of_shuffle", "split_off", "without"]

Document = dict[str, Any]


def fingerprint(text: str) -> str:
    """SHA-256 of a text after NFKC, lower case and collapsed white space: equal for texts that say the same."""
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()


def first_of_shuffle(items: Sequence[Document], limit: int | None, seed: int) -> list[Document]:
    """The first ``limit`` items of a seeded shuffle; all, in their own order, when the limit takes none away.

    A smaller limit gives a prefix of a larger one. Items need an ``id``.
    """
    if limit is None or limit >= len(items):
        return list(items)
    return sorted(items, key=lambda item: _rank(seed, f"order\0{item['id']}"))[:limit]


def split_off(
    items: Sequence[Document], count: int, text_of: Callable[[Document], str], seed: int
) -> tuple[list[Document], list[Document]]:
    """Split into (rest, split off) by seeded hash of the normalised text; copies of a text split off are dropped.

    Args:
        items: the items.
        count: how many different texts to split off; all when there are fewer.
        text_of: what makes two items the same.
        seed: another seed, another split.
    """
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(fingerprint(text_of(item)), []).append(index)
    chosen = sorted(groups, key=lambda key: _rank(seed, f"split\0{key}"))[:count]
    gone = {index for key in chosen for index in groups[key]}
    rest = [item for index, item in enumerate(items) if index not in gone]
    return rest, [items[index] for index in sorted(groups[key][0] for key in chosen)]


def without(items: Iterable[Document], text_of: Callable[[Document], str], used: set[str]) -> list[Document]:
    """The items whose fingerprint is not among ``used``."""
    return [item for item in items if fingerprint(text_of(item)) not in used]


def _rank(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
