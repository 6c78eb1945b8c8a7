"""What is asked and what came of it, item by item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentic_compression.evaluation.split import item_text
from agentic_compression.records import content_digest

__all__ = ["Item", "ItemAnswer", "named"]


@dataclass(frozen=True)
class Item:
    """One item of a task.

    Attributes:
        id: its own ``id``, or a digest of its content; unique in its task.
        document: its fields.
    """

    id: str
    document: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What it says, without its own name: what decides on which side of the split it stands."""
        return item_text(dict(self.document))


@dataclass(frozen=True)
class ItemAnswer:
    """What a model's answer to one item is worth.

    Attributes:
        value: between 0 and 1.
        hits: of a text, token by token, whether the likeliest token was the right one; empty for a question.
        truncated: whether the prompt lost its beginning to fit the context.
        answer_tokens: most new tokens the answer could have; None where nothing is generated.
        said: the texts generated, or the log-likelihoods (nats) of the choices; empty for a text.
    """

    value: float
    hits: tuple[int, ...] = ()
    truncated: bool = False
    answer_tokens: int | None = None
    said: tuple[str | float, ...] = ()


def named(documents: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Items with names that depend on their content alone; equal names are told apart by a number."""
    repeated: Counter[str] = Counter()
    items: dict[str, Item] = {}
    for document in documents:
        unique = name = _name(document)
        while unique in items:  # also where another item's own id is "name#2"
            repeated[name] += 1
            unique = f"{name}#{repeated[name] + 1}"
        items[unique] = Item(unique, document)
    return list(items.values())


def _name(document: Mapping[str, Any]) -> str:
    own = document.get("id")
    return str(own) if own not in (None, "") else content_digest(item_text(dict(document)))
