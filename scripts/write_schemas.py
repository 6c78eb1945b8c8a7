"""Write docs/schemas/*.json from the records: ``python scripts/write_schemas.py``."""

from __future__ import annotations

from pathlib import Path

from agentic_compression.schemas import json_schemas
from agentic_compression.storage import write_atomically

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"


def main() -> None:
    for name, text in json_schemas().items():
        write_atomically(FOLDER / name, text)
        print(f"wrote {FOLDER / name}")


if __name__ == "__main__":
    main()
