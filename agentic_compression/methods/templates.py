"""Named strategies, and reading a strategy from a name, a file or its text."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agentic_compression.errors import StrategyError
from agentic_compression.records import Strategy
from agentic_compression.resources import configs_dir

__all__ = ["Template", "read_strategy", "templates"]

_SUFFIXES = {".yaml", ".yml", ".json", ".txt"}


@dataclass(frozen=True)
class Template:
    """A strategy with a name and what it is for."""

    name: str
    description: str
    strategy: Strategy


def templates() -> tuple[Template, ...]:
    """The templates in ``configs/templates``, by name.

    Raises:
        StrategyError: when one of the files is not a template.
    """
    found = []
    for path in sorted((configs_dir() / "templates").glob("*.yaml")):
        values = _load(path)
        if not isinstance(values, dict) or not isinstance(values.get("description"), str):
            raise StrategyError(f"{path} must hold 'description' and 'strategy'; see the other templates")
        found.append(Template(path.stem, values["description"], _from_values(values, path, path.stem)))
    return tuple(found)


def read_strategy(text: str) -> Strategy:
    """A strategy from a template's name, a file (.yaml, .json or .txt) or the text itself.

    A file holds ``strategy:`` with the text or with a list of ``{method, parameters, when}``, or just the text.

    Raises:
        StrategyError: when it is none of these.
    """
    named = {template.name: template for template in templates()}
    if text.strip() in named:
        return named[text.strip()].strategy
    if near := difflib.get_close_matches(text.strip().replace("-", "_"), named, n=1, cutoff=0.8):
        raise StrategyError(f"no template {text.strip()!r}; did you mean {near[0]!r}? templates: {', '.join(named)}")
    path = Path(text)
    if path.suffix in _SUFFIXES and "|" not in text:
        if not path.is_file():
            raise StrategyError(f"strategy file {path} does not exist; check the path")
        return _from_values(_load(path), path, None)
    try:
        return Strategy.parse(text)
    except ValueError as error:
        raise StrategyError(str(error)) from error


def _load(path: Path) -> Any:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        return text if path.suffix == ".txt" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise StrategyError(f"{path} cannot be read as a strategy: {' '.join(str(error).split())[:200]}") from error


def _from_values(values: Any, path: Path, name: str | None) -> Strategy:
    written = values.get("strategy", values.get("stages")) if isinstance(values, dict) else values
    try:
        if isinstance(written, str):
            return Strategy(stages=Strategy.parse(written.strip()).stages, name=name)
        return Strategy.model_validate({"stages": written, "name": name})
    except (ValueError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise StrategyError(
            f"{path} must hold 'strategy' as text or as a list of {{method, parameters}}: {first}"
        ) from error
