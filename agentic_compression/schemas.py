"""JSON Schemas of the files that a user writes or a user's scripts read, generated from the records."""

from __future__ import annotations

import json
from typing import Any, Literal

from agentic_compression.records import EpisodeResults, FinalResults, FrontierDocument, Record, StudyConfig

__all__ = ["SCHEMAS", "json_schemas"]

SCHEMAS: dict[str, tuple[type[Record], Literal["validation", "serialization"]]] = {
    "pareto_frontier.schema.json": (FrontierDocument, "serialization"),
    "final_results.schema.json": (FinalResults, "serialization"),
    "episode_results.schema.json": (EpisodeResults, "serialization"),
    "study.schema.json": (StudyConfig, "validation"),
}
"""File name to the record it describes, and whether as it is read (a study) or as it is written (the results)."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schemas() -> dict[str, str]:
    """The text of every schema file by its name; the same text for the same records."""
    return {name: _text(model, mode) for name, (model, mode) in SCHEMAS.items()}


def _text(model: type[Record], mode: Literal["validation", "serialization"]) -> str:
    schema: dict[str, Any] = {"$schema": _DIALECT, **model.model_json_schema(mode=mode)}
    if model is StudyConfig:
        _accept_constraint_texts(schema)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _accept_constraint_texts(schema: dict[str, Any]) -> None:
    """A study writes ``accuracy_drop<=0.02``; pydantic's own schema knows only the parsed form."""
    text = {"type": "string", "description": "for example accuracy_drop<=0.02"}
    constraints = schema["properties"]["constraints"]
    listed = {**constraints, "items": {"anyOf": [text, constraints["items"]]}}
    title, default = listed.pop("title"), listed.pop("default")
    schema["properties"]["constraints"] = {"anyOf": [text, listed], "default": default, "title": title}
