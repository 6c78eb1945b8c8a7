"""A recorded table: every strategy of a space with what it really came to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from agentic_compression.records import Estimate, ModelSpec, Objectives, Record
from agentic_compression.storage import write_atomically

__all__ = ["DATA", "Header", "Row", "Table", "pack_answers", "unpack_answers"]

DATA = Path(__file__).resolve().parent.parent / "data"


class Header(Record):
    """Where a table is from."""

    model: str
    dataset: str
    digest: str = Field(description="of the model")
    command: str
    code_version: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    vocabulary: int
    spec: ModelSpec | None = None
    items: dict[str, list[str]] = Field(description="ids by task, in the order of the rows' answers")


class Row(Record):
    """One strategy, or why it could not be carried out."""

    strategy: str = Field(description="label of the canonical form, or baseline")
    error: str = ""
    values: dict[str, tuple[float, float, float]] = Field(
        default_factory=dict, description="objectives: value and 95 % interval; the accuracy over all items"
    )
    perplexity: float | None = None
    kl: Estimate | None = None
    weights_bytes: int = 0
    peak_bytes: int = Field(default=0, description="of the process that compressed")
    glance: tuple[float, float, float] | None = Field(
        default=None, description="ms and grams CO2e of the least of three requests, GB of the first repetition"
    )
    seconds: dict[str, float] = Field(default_factory=dict, description="compress, evaluate, load, and by reading")
    answers: dict[str, str] = Field(default_factory=dict, description="by task, right (1) or wrong (0), as hex")

    @property
    def objectives(self) -> Objectives:
        """All five, the accuracy over all items."""
        return Objectives(**{name: value for name, (value, _, _) in self.values.items()})


class Table(Record):
    """Header and rows, the baseline's first."""

    header: Header
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, path: Path) -> Table:
        """A table from its file."""
        return cls.model_validate_json(path.read_text())

    def write(self, path: Path) -> None:
        """One row a line, so that a table's changes can be read."""
        rows = ",\n".join(json.dumps(row.model_dump(mode="json", exclude_defaults=True)) for row in self.rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            path, f'{{"header": {json.dumps(self.header.model_dump(mode="json"))},\n"rows": [\n{rows}\n]}}\n'
        )

    @property
    def baseline(self) -> Row:
        """The uncompressed model's row."""
        assert self.rows[0].strategy == "baseline", "the first row of a table is the baseline's"
        return self.rows[0]


def pack_answers(outcomes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Right and wrong as hex, most significant bit first."""
    return {task: f"{int('1' + ''.join(map(str, bits)), 2):x}" for task, bits in outcomes.items()}


def unpack_answers(packed: Mapping[str, str]) -> dict[str, list[int]]:
    """The inverse of ``pack_answers``."""
    return {task: [int(bit) for bit in f"{int(digits, 16):b}"[1:]] for task, digits in packed.items()}
