"""The promotion policy as a file."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from agentic_compression.errors import ConfigurationError
from agentic_compression.records import PromotionPolicy
from agentic_compression.resources import configs_dir

__all__ = ["policy_file", "read_policy"]

_NAME = "promotion.yaml"


def policy_file(root: Path) -> Path:
    """``promotion.yaml`` in the state root where there is one, else the one that ships."""
    own = root / _NAME
    return own if own.is_file() else configs_dir() / _NAME


def read_policy(path: Path) -> PromotionPolicy:
    """Read and validate a policy.

    Raises:
        ConfigurationError: when it cannot be read or a field is wrong; names the field.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return PromotionPolicy.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigurationError(f"{path}: {where}: {first['msg']}, got {str(first.get('input'))[:80]!r}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} must be a promotion policy in YAML, got {error}") from error
