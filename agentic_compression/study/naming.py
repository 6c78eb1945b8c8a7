"""The name of a study when the user gives none."""

from __future__ import annotations

import re
from pathlib import Path

from agentic_compression.records import StudyConfig

__all__ = ["short_name", "study_name", "with_name"]


def study_name(config: StudyConfig) -> str:
    """``<model>-<dataset>``, with ``-seed<N>`` behind it for a seed other than 0."""
    name = f"{short_name(config.model)}-{short_name(config.dataset)}"
    return (f"{name}-seed{config.seed}" if config.seed else name)[:100]


def with_name(config: StudyConfig) -> StudyConfig:
    """The same study with its name filled in."""
    return config if config.name else config.model_copy(update={"name": study_name(config)})


def short_name(reference: str) -> str:
    """The last part of a path, Hub id or registry URI, in characters fit for a file name."""
    name = Path(reference.removeprefix("models:/").rstrip("/")).name
    name = re.sub(r"\.(jsonl|csv|parquet)$", "", name)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "study"
