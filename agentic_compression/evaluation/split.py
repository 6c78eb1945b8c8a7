"""Which items a search plans on and which are kept for the report.

The best of many candidates on one set of items owes part of its lead to luck with these very items (the winner's
curse). So the items of a task are split once, by a seeded hash of what each item says: plans are made on the *search*
side, and the figures that are reported come from the *report* side, which no plan has seen.

An item's side depends on its own text, the seed and the share alone. Reordering items or adding others moves none of
them, and items that say the same (after Unicode normalisation, in lower case, however many spaces lie between two
words) share a side; a line break inside a text is not a space.
``EvaluationSettings.limit`` applies first: the split divides the items that would have been asked.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from agentic_compression.records import Split

__all__ = ["LEAST_ITEMS", "item_text", "on_side", "rank", "side_of", "unsplit_warning"]

LEAST_ITEMS = 8
"""A task with fewer items than this on one side is not split: both sides ask all of it, with a warning."""

_NAMES = frozenset({"id", "idx", "ind", "index", "doc_id", "question_id", "query_id", "source_id", "task_id"})


def side_of(text: str, seed: int, report_share: float) -> Split:
    """``search`` or ``report``.

    Args:
        text: what the item says, as ``item_text`` gives it.
        seed: another seed, another split.
        report_share: expected share of the items on the report side, between 0 and 1.
    """
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return "report" if _fraction(f"split\0{seed}\0{normal}") < report_share else "search"


def on_side(texts: Sequence[str], split: Split, seed: int, report_share: float) -> list[int]:
    """Positions of one task's items on a side, ascending.

    Args:
        texts: what each item says.
        split: the side; ``all`` takes every item.
        seed: of the split.
        report_share: expected share of the report side.

    Returns:
        Every position where the task is too small to be split (see ``unsplit_warning``).
    """
    if split == "all":
        return list(range(len(texts)))
    sides = [side_of(text, seed, report_share) for text in texts]
    if _too_small(sides):
        return list(range(len(texts)))
    return [position for position, side in enumerate(sides) if side == split]


def unsplit_warning(task: str, texts: Sequence[str], seed: int, report_share: float) -> str | None:
    """What to say of a task that is too small to be split, or None."""
    sides = [side_of(text, seed, report_share) for text in texts]
    if not _too_small(sides):
        return None
    return (
        f"task {task!r} has {len(texts)} items, too few to leave {LEAST_ITEMS} on each side of the split: its search "
        "and report figures come from the same items, so the best of many is flattered; use more items (--limit)"
    )


def item_text(document: Any) -> str:
    """What an item says: its content without its own name or number, as one line of JSON with sorted keys."""
    if isinstance(document, dict):
        document = {key: value for key, value in document.items() if str(key).lower() not in _NAMES}
    return json.dumps(document, sort_keys=True, ensure_ascii=False, default=str)


def rank(identity: str, seed: int) -> bytes:
    """Sort key of a seeded shuffle: ascending ranks are a random order that does not depend on the other items."""
    return hashlib.sha256(f"order\0{seed}\0{identity}".encode("utf-8", "surrogatepass")).digest()


def _too_small(sides: Sequence[Split]) -> bool:
    return min(sides.count("search"), sides.count("report")) < LEAST_ITEMS


def _fraction(text: str) -> float:
    """A hash as a number in [0, 1)."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
