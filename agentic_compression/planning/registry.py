"""The planners by name, imported when chosen."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from agentic_compression.errors import ConfigurationError
from agentic_compression.planning.interface import Optimizer, Planner
from agentic_compression.records import PLANNERS
from agentic_compression.settings import get_settings

__all__ = ["CONSULTING_FACTORIES", "PLANNER_FACTORIES", "load_optimizer", "load_planner", "select_planner"]

PLANNER_FACTORIES = {
    "greybox": "agentic_compression.planning.greybox:greybox_planner",
    "tpe": "agentic_compression.planning.optuna_planner:tpe_planner",
    "gp": "agentic_compression.planning.optuna_planner:gp_planner",
    "nsga2": "agentic_compression.planning.optuna_planner:nsga2_planner",
    "bandit": "agentic_compression.planning.bandit:bandit_planner",
    "pbt": "agentic_compression.planning.pbt:pbt_planner",
    "random": "agentic_compression.planning.registry:_random_planner",
}
"""Searches: name to ``module:factory``; a factory takes the path of the planner's own file, or None for no file."""

CONSULTING_FACTORIES = {
    "llm": "agentic_compression.planning.registry:_llm_planner",
    "hybrid": "agentic_compression.planning.registry:_hybrid_planner",
}
"""Planners that ask a language model, in the same way."""

_DEFAULT = "greybox"
"""What ``auto`` searches with, whatever the budget and the space: on every recorded table it came furthest with 5 to 40
episodes (docs/measurements/planners.md), and a proposal after a thousand episodes still takes it seconds."""


def load_planner(name: str, storage_path: Path | None = None) -> Planner:
    """The planner of that name.

    Args:
        name: one of ``PLANNER_FACTORIES`` or ``CONSULTING_FACTORIES``, or ``auto`` for the search that does best.
        storage_path: file in which it may keep what it derives from the history.

    Raises:
        ConfigurationError: for an unknown name, with the nearest known one.
    """
    name = _DEFAULT if name == "auto" else name
    factories = PLANNER_FACTORIES | CONSULTING_FACTORIES
    if name not in factories:
        near = get_close_matches(name, PLANNERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigurationError(f"unknown planner {name!r}; known: {', '.join(PLANNERS)}{hint}")
    module, _, attribute = factories[name].partition(":")
    factory: Callable[[Path | None], Planner] = getattr(import_module(module), attribute)
    return factory(storage_path)


def load_optimizer(storage_path: Path | None = None) -> Optimizer:
    """The search that stands beside a language model; any planner will do, with one candidate at a time."""
    from agentic_compression.planning.llm.candidates import OneCandidate

    planner = load_planner(_DEFAULT, storage_path)
    return planner if isinstance(planner, Optimizer) else OneCandidate(planner)


def select_planner(name: str, has_api_key: bool, storage_path: Path | None = None) -> tuple[Planner, str]:
    """The planner a study asked for, and one line that says what plans and why.

    Args:
        name: as in a study file; ``auto`` asks a language model when there is a key, and else searches.
        has_api_key: whether ``OPENAI_API_KEY`` is set.
        storage_path: see ``load_planner``.

    Raises:
        ConfigurationError: for an unknown name, for a language model's planner without a key and without an endpoint
            of one's own, or for an endpoint that is no URL.
    """
    base_url = get_settings().openai_base_url
    if name in CONSULTING_FACTORIES and not has_api_key and not base_url:
        raise ConfigurationError(
            f"OPENAI_API_KEY environment variable not set: planner {name!r} asks a language model; "
            f"set it (export OPENAI_API_KEY=..., or a line in .env) or use --planner {_DEFAULT}"
        )
    if name == "auto" and not has_api_key:
        hint = " (OPENAI_BASE_URL is: --planner hybrid asks there without a key)" if base_url else ""
        reason = f"OPENAI_API_KEY is not set{hint}, so no language model is asked"
        return load_planner("auto", storage_path), f"planner: auto plans by search ({_DEFAULT}); {reason}"
    chosen = "hybrid" if name == "auto" else name
    planner = load_planner(chosen, storage_path)
    if chosen not in CONSULTING_FACTORIES:
        return planner, f"planner: {chosen}"
    called = "auto plans with a language model (hybrid)" if name == "auto" else chosen
    host = urlsplit(base_url).netloc if base_url else "api.openai.com"
    key = "" if has_api_key else "; OPENAI_API_KEY is not set, so a placeholder is sent as the key"
    return planner, f"planner: {called}; asks {get_settings().planner_model} at {host}{key}"


def _random_planner(storage_path: Path | None) -> Planner:
    from agentic_compression.planning.random_planner import RandomPlanner

    return RandomPlanner()


def _llm_planner(storage_path: Path | None) -> Planner:
    from agentic_compression.planning.llm import LlmPlanner
    from agentic_compression.planning.llm.endpoint import configured_endpoint

    settings = get_settings()
    return LlmPlanner(load_optimizer(storage_path), configured_endpoint(settings), settings)


def _hybrid_planner(storage_path: Path | None) -> Planner:
    from agentic_compression.planning.hybrid import HybridPlanner
    from agentic_compression.planning.llm.endpoint import configured_endpoint

    settings = get_settings()
    return HybridPlanner(load_optimizer(storage_path), configured_endpoint(settings), settings)
