"""The exception tree. Every message says what, got, allowed, next.

* ``AcfError`` — anything this package raises on purpose; the command exits with ``exit_code``

  * ``UsageError`` — the user's input is at fault (exit code 2)

    * ``ModelError`` — model missing, gated, corrupt or without tokenizer
    * ``DatasetError`` — dataset missing, empty, malformed
    * ``StrategyError`` — unknown method, parameter out of range, illegal stage order
    * ``ConfigurationError`` — a study file, option or environment variable is wrong

  * ``UnavailableError`` — a library, device or file this needs is not here; says what to install
  * ``InfeasibleError`` — a candidate cannot be built or cannot meet a constraint; becomes an episode result
  * ``CompressionError`` — a stage failed; says which stage, the cause and what to change
"""

from __future__ import annotations

__all__ = [
    "AcfError",
    "CompressionError",
    "ConfigurationError",
    "DatasetError",
    "InfeasibleError",
    "ModelError",
    "StrategyError",
    "UnavailableError",
    "UsageError",
]


class AcfError(Exception):
    """Root of every error raised on purpose; ``str(error)`` is one line fit for a terminal."""

    exit_code: int = 1


class UsageError(AcfError):
    """The user's input is at fault."""

    exit_code = 2


class ModelError(UsageError):
    """The model is missing, gated, corrupt or has no tokenizer."""


class DatasetError(UsageError):
    """The dataset is missing, empty or malformed."""


class StrategyError(UsageError):
    """A strategy names an unknown method, an illegal value or an illegal order."""


class ConfigurationError(UsageError):
    """A study file, an option or an environment variable is wrong."""


class UnavailableError(AcfError):
    """Something this needs is not installed or not on this machine."""


class InfeasibleError(AcfError):
    """The candidate cannot be built here or cannot meet a constraint."""


class CompressionError(AcfError):
    """A compression stage failed."""
