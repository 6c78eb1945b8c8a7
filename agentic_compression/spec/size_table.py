"""The offline table of well-known models (``model_sizes.csv``): used when the Hub cannot be asked."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from agentic_compression.spec.shape import ModelShape

__all__ = ["TableRow", "lookup", "nearest_ids", "size_table"]


@dataclass(frozen=True)
class TableRow:
    """One model: Hub id, exact parameters, published size in billions, shape, and whether access is gated."""

    model: str
    parameters: int
    published_billions: float
    shape: ModelShape
    gated: bool


@cache
def size_table() -> Mapping[str, TableRow]:
    """The table by lower-case Hub id."""
    text = resources.files("agentic_compression.spec").joinpath("model_sizes.csv").read_text("utf-8")
    return {row["id"].lower(): _row(row) for row in csv.DictReader(text.splitlines())}


def lookup(model: str) -> TableRow | None:
    """The row of a Hub id, ignoring case; None when it is not listed."""
    return size_table().get(model.lower())


def nearest_ids(model: str) -> list[str]:
    """Up to three listed ids that look like this one, best first."""
    close = difflib.get_close_matches(model.lower(), size_table(), n=3, cutoff=0.75)
    return [size_table()[key].model for key in close]


def _row(row: dict[str, str]) -> TableRow:
    shape = ModelShape(
        family=row["family"], layers=int(row["layers"]), hidden=int(row["hidden"]),
        intermediate=int(row["intermediate"]), heads=int(row["heads"]), kv_heads=int(row["kv_heads"]),
        head_dim=int(row["head_dim"]), vocabulary=int(row["vocab"]), context=int(row["context"]),
        tied=row["tied"] == "1", experts=int(row["experts"]) if row["experts"] else None,
    )  # fmt: skip
    return TableRow(
        model=row["id"],
        parameters=int(row["parameters"]),
        published_billions=float(row["published_billions"]),
        shape=shape,
        gated=row["gated"] == "1",
    )
