"""Reads a study file: the same YAML serves ``acf run --config`` and ``zenml pipeline run -c``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentic_compression.errors import ConfigurationError

__all__ = ["calibration_source", "read_study"]


def read_study(path: Path) -> dict[str, Any]:
    """The study's values from ``parameters.study`` of the file.

    Raises:
        ConfigurationError: when the file is missing, is no YAML or has no study.
    """
    import yaml

    if not path.is_file():
        raise ConfigurationError(f"no study file {path}; see configs/studies/demo.yaml for an example")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    parameters = content.get("parameters") if isinstance(content, dict) else None
    study = parameters.get("study") if isinstance(parameters, dict) else None
    if not isinstance(study, dict):
        raise ConfigurationError(f"{path} has no study: it must hold 'parameters: {{study: {{model: …, dataset: …}}}}'")
    return study


def calibration_source(text: str) -> str:
    """``train`` and ``wikitext`` as they are; a file by its absolute path, so that a study can go on from anywhere."""
    return text if text in {"train", "wikitext"} else str(Path(text).resolve())
