"""Where shipped data lies: ``configs/`` beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

from pathlib import Path

__all__ = ["configs_dir"]


def configs_dir() -> Path:
    """The folder with ``studies``, ``tasks`` and ``stacks``."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
