"""The base of all records: frozen, strict about unknown fields, JSON in and out."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Record", "content_digest"]


class Record(BaseModel):
    """An immutable value that travels between stages."""

    # Pydantic writes a number that is not finite as null by default, and then cannot read its own text back.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), ser_json_inf_nan="strings")


def content_digest(value: Any) -> str:
    """SHA-256 (first 16 hex digits) of a JSON-able value in canonical form (sorted keys, no spaces)."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
