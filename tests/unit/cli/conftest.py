"""The registry's desk, for commands that tell what it holds."""

from __future__ import annotations

from tests.unit.registry.conftest import studio

__all__ = ["studio"]
