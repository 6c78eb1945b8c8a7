"""The planners by name, imported when chosen."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from agentic_compression.errors import ConfigurationError, UnavailableError
from agentic_compression.planning.interface import Planner
from agentic_compression.records import PLANNERS

__all__ = ["PLANNER_FACTORIES", "load_planner", "select_planner"]

PLANNER_FACTORIES = {
    "tpe": "agentic_compression.planning.optuna_planner:tpe_planner",
    "gp": "agentic_compression.planning.optuna_planner:gp_planner",
    "nsga2": "agentic_compression.planning.optuna_planner:nsga2_planner",
    "random": "agentic_compression.planning.registry:_random_planner",
}
"""Name to ``module:factory``; a factory takes the path of the planner's own file, or None for no file."""

_NEEDS_KEY = ("llm", "hybrid")
_DEFAULT = "tpe"


def load_planner(name: str, storage_path: Path | None = None) -> Planner:
    """The planner of that name.

    Args:
        name: one of ``PLANNER_FACTORIES``.
        storage_path: file in which it may keep what it derives from the history.

    Raises:
        ConfigurationError: for an unknown name, with the nearest known one.
        UnavailableError: for a planner that is planned but not built.
    """
    if name not in PLANNERS:
        near = get_close_matches(name, PLANNERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"unknown planner {name!r}; known: {', '.join(PLANNERS)}{hint}")
    if name not in PLANNER_FACTORIES:
        built = ", ".join(PLANNER_FACTORIES)
        raise UnavailableError(
            f"planner {name!r} is not built yet in this version; use --planner {_DEFAULT} (built: {built})"
        )
    module, _, attribute = PLANNER_FACTORIES[name].partition(":")
    factory: Callable[[Path | None], Planner] = getattr(import_module(module), attribute)
    return factory(storage_path)


def select_planner(name: str, has_api_key: bool, storage_path: Path | None = None) -> tuple[Planner, str]:
    """The planner a study asked for, and one line that says what plans and why.

    Args:
        name: as in a study file; ``auto`` takes what this machine can use.
        has_api_key: whether ``OPENAI_API_KEY`` is set.
        storage_path: see ``load_planner``.

    Raises:
        ConfigurationError: for an unknown name, or for a language model's planner without a key.
        UnavailableError: for a planner that is not built yet.
    """
    if name in _NEEDS_KEY and not has_api_key:
        raise ConfigurationError(
            f"OPENAI_API_KEY environment variable not set: planner {name!r} asks a language model; "
            f"set it (export OPENAI_API_KEY=..., or a line in .env) or use --planner {_DEFAULT}"
        )
    if name != "auto":
        return load_planner(name, storage_path), f"planner: {name}"
    reason = (
        "planners that ask a language model are not built yet in this version"
        if has_api_key
        else "OPENAI_API_KEY is not set, so no language model is asked"
    )
    return load_planner(_DEFAULT, storage_path), f"planner: auto plans by search ({_DEFAULT}); {reason}"


def _random_planner(storage_path: Path | None) -> Planner:
    from agentic_compression.planning.random_planner import RandomPlanner

    return RandomPlanner()
