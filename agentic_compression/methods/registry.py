"""The compression methods there are: one line each, and third parties' through the entry-point group."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from functools import cache
from importlib.metadata import entry_points

from agentic_compression.errors import StrategyError
from agentic_compression.methods.interface import Method
from agentic_compression.records import MethodDescription, SearchSpace

__all__ = ["ENTRY_POINT_GROUP", "describe_methods", "get_method", "search_space"]

ENTRY_POINT_GROUP = "agentic_compression.methods"

_BUILT_IN = (
    "agentic_compression.methods.magnitude:METHOD",
    "agentic_compression.methods.wanda:METHOD",
    "agentic_compression.methods.sparsegpt:METHOD",
    "agentic_compression.methods.drop_layers:METHOD",
    "agentic_compression.methods.drop_heads:METHOD",
    "agentic_compression.methods.drop_channels:METHOD",
    "agentic_compression.methods.asvd:METHOD",
    "agentic_compression.methods.svd_llm:METHOD",
    "agentic_compression.methods.rtn:METHOD",
    "agentic_compression.methods.gptq:METHOD",
    "agentic_compression.methods.awq:METHOD",
    "agentic_compression.methods.autoround:METHOD",
    "agentic_compression.methods.mixed_precision:METHOD",
    "agentic_compression.methods.int8:METHOD",
    "agentic_compression.methods.nf4:METHOD",
    "agentic_compression.methods.fp8:METHOD",
    "agentic_compression.methods.gguf:METHOD",
    "agentic_compression.methods.distill:METHOD",
    "agentic_compression.methods.lora:METHOD",
    "agentic_compression.methods.qlora:METHOD",
)


def get_method(name: str) -> Method:
    """A method that can run here, by name.

    Raises:
        StrategyError: when it is unknown or not available, with the reason.
    """
    methods, broken = _load()
    if name in methods:
        if reason := _missing(methods[name]):
            raise StrategyError(f"{name} is not available: {reason}")
        return methods[name]
    for description in broken:
        if description.name == name:
            raise StrategyError(f"{name} is not available: {description.unavailable_reason}")
    near = difflib.get_close_matches(name, methods, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise StrategyError(f"unknown method {name!r}; {hint}known: {', '.join(methods)} (see: acf methods)")


def describe_methods() -> tuple[MethodDescription, ...]:
    """Every method with its parameters and whether it can run here; imports no torch."""
    methods, broken = _load()
    return (*(method.describe(_missing(method)) for method in methods.values()), *broken)


def search_space(max_stages: int = 2) -> SearchSpace:
    """The methods with the greatest length of a strategy."""
    return SearchSpace(methods=describe_methods(), max_stages=max_stages)


@cache
def _load() -> tuple[dict[str, Method], tuple[MethodDescription, ...]]:
    """Built-in methods and plugins; a plugin that fails to load becomes a description that says why."""
    methods: dict[str, Method] = {}
    broken = []
    for target in _BUILT_IN:
        module, _, attribute = target.partition(":")
        method: Method = getattr(importlib.import_module(module), attribute)
        methods[method.name] = method
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        try:
            loaded = point.load()
            if not isinstance(loaded, Method):
                raise TypeError(f"{point.value} must be a Method, got {type(loaded).__name__}")
            if loaded.name in methods:
                raise ValueError(f"the name {loaded.name!r} is taken")
            loaded.describe()
            methods[loaded.name] = loaded
        except Exception as error:  # whatever a third party's import raises must not take the command down
            broken.append(_broken(point.name, point.value, error))
    return methods, tuple(broken)


def _broken(name: str, value: str, error: Exception) -> MethodDescription:
    reason = f"plugin {value} could not be loaded: {type(error).__name__}: {error}; reinstall or remove it"
    return MethodDescription(
        name=name,
        category="quantization",
        summary="(plugin could not be loaded)",
        paper="",
        available=False,
        unavailable_reason=reason,
    )


def _missing(method: Method) -> str | None:
    for library in method.requires:
        if importlib.util.find_spec(library) is None:
            return f"needs the library {library}; install it with: pip install {library}"
    if method.needs_gpu and not _has_gpu():
        return "needs an NVIDIA GPU; none was found on this machine"
    return method.unavailable() if method.unavailable else None


@cache
def _has_gpu() -> bool:
    from pathlib import Path

    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
