"""The search spaces of the recorded tables: small enough that every strategy in them has been carried out.

A table holds *all* strategies of its space, so a planner that searches the space needs no rounding to the nearest
recorded strategy: whatever it proposes has been measured. The space is the methods' own, with fewer values.
"""

from __future__ import annotations

from typing import Any

from agentic_compression.methods import describe_methods
from agentic_compression.records import MethodDescription, Parameter, ParameterValue, SearchSpace

__all__ = ["SPACE_VALUES", "replay_space"]

SPACE_VALUES: dict[str, dict[str, tuple[ParameterValue, ...]]] = {
    "magnitude": {"sparsity": (0.5,)},
    "wanda": {"sparsity": (0.3, 0.5)},
    "sparsegpt": {"sparsity": (0.5,)},
    "drop_channels": {"share": (0.1, 0.2, 0.3, 0.4)},
    "drop_heads": {"share": (0.2,)},
    "drop_layers": {"share": (0.2,)},
    "svd_llm": {"rank_ratio": (0.9, 0.7)},
    "rtn": {"bits": (8, 4, 3), "group_size": (64,)},
    "gptq": {"bits": (4, 3, 2), "group_size": (32, 128)},
    "awq": {"bits": (4, 3), "group_size": (64,)},
    "int8": {},
    "nf4": {},
    "gguf": {"type": ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")},
}
"""By method, the values of the parameters that vary; all others stand at their defaults."""


def replay_space(max_stages: int = 2) -> SearchSpace:
    """The recorded space, with every method on offer whatever is installed: nothing is carried out in a replay."""
    methods = {method.name: method for method in describe_methods()}
    return SearchSpace(
        methods=tuple(_narrowed(methods[name], values) for name, values in SPACE_VALUES.items()), max_stages=max_stages
    )


def _narrowed(method: MethodDescription, values: dict[str, tuple[ParameterValue, ...]]) -> MethodDescription:
    parameters = tuple(
        _fixed(parameter, values.get(parameter.name, (parameter.default,))) for parameter in method.parameters
    )
    changes: dict[str, Any] = {"parameters": parameters, "available": True, "unavailable_reason": None}
    return method.model_copy(update=changes)


def _fixed(parameter: Parameter, values: tuple[ParameterValue, ...]) -> Parameter:
    default = parameter.default if parameter.default in values else values[0]
    changes: dict[str, Any] = {"kind": "choice", "choices": values, "low": None, "high": None, "step": None}
    return parameter.model_copy(update=changes | {"default": default, "active_when": None})
