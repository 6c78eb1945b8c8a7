"""Answers of a given shape: how ``response_format`` becomes the schema that an engine is asked to keep to."""

from __future__ import annotations

import json
from typing import Any

from agentic_compression.serving.engine import PromptError

__all__ = ["JSON_OBJECT", "MAX_DEPTH", "MAX_PARTS", "MAX_SCHEMA_BYTES", "schema_text"]

JSON_OBJECT = '{"type":"object"}'
"""What ``json_object`` asks for."""

MAX_SCHEMA_BYTES = 32_768
MAX_DEPTH = 48
MAX_PARTS = 4_000


def schema_text(schema: dict[str, Any]) -> str:
    """A schema as JSON, once it is small enough to be compiled.

    Args:
        schema: as the request brought it.

    Raises:
        PromptError: when it is too deep, has too many parts or bytes, or numbers that JSON does not have.
    """
    parts, level, depth = 0, [schema], 0
    nested: list[Any]
    while level:
        nested = []
        for value in level:
            if isinstance(value, dict | list):
                nested.extend(value.values() if isinstance(value, dict) else value)
        parts += len(level)
        depth += 1
        if depth > MAX_DEPTH:
            raise _refused(f"nest at most {MAX_DEPTH} levels deep, got more")
        if parts > MAX_PARTS:
            raise _refused(f"have at most {MAX_PARTS} values, got more")
        level = nested
    try:
        text = json.dumps(schema, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise _refused("have finite numbers, got NaN or Infinity") from error
    if len(text) > MAX_SCHEMA_BYTES:
        raise _refused(f"have at most {MAX_SCHEMA_BYTES} bytes, got {len(text)}")
    return text


def _refused(limit: str) -> PromptError:
    return PromptError(f"a JSON schema must {limit}; send a simpler one", "invalid_json_schema", "response_format")
