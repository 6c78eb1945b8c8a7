"""The strategies every study starts with, the same for every planner, so that planners are compared on the rest.

Equal seeds matter: an LLM's "good first guess" is usually the default configuration, and search that starts from the
same configurations closes the lead within a few episodes (arXiv 2606.21641).
"""

from __future__ import annotations

from agentic_compression.planning.grid import canonical, parameter_values
from agentic_compression.records import MethodDescription, Parameter, ParameterValue, SearchSpace, Stage, Strategy

__all__ = ["SEEDS", "seed_strategies"]

SEEDS = 2
"""So many before the planner decides: on recorded results more of them delay it (docs/measurements/planners.md)."""

Wish = tuple[tuple[str, ...], dict[str, ParameterValue]]  # methods by preference, parameter values

_FOUR_BITS: Wish = (("gptq", "rtn"), {"bits": 4, "group_size": 128})
_LLAMA_CPP: Wish = (("gguf",), {"type": "Q4_K_M"})
_LIGHT_PRUNING: Wish = (("sparsegpt", "wanda", "magnitude"), {"sparsity": 0.3})
_WISHES: tuple[tuple[tuple[Wish, ...], str], ...] = (
    ((_FOUR_BITS,), "4 bits, the usual knee of size and accuracy"),
    ((_LLAMA_CPP,), "4 bits in llama.cpp, the quickest engine on a CPU"),
    (((("rtn", "gptq"), {"bits": 8, "group_size": 128}),), "8 bits, nearly lossless"),
    (((("gptq", "rtn"), {"bits": 3, "group_size": 64}),), "3 bits in small groups, below the usual knee"),
    (((("gptq", "rtn"), {"bits": 2, "group_size": 32}),), "2 bits, the small end of the trade-off"),
    (((("drop_channels",), {"share": 0.2}), _LLAMA_CPP), "a narrower MLP, then 4 bits in llama.cpp"),
    ((_LIGHT_PRUNING, _FOUR_BITS), "light pruning, then 4 bits"),
    (
        ((("svd_llm", "asvd"), {"rank_ratio": 0.5}),),
        "low rank, fewer multiplications without changing the number format",
    ),
)


def seed_strategies(space: SearchSpace, limit: int = SEEDS) -> tuple[tuple[Strategy, str], ...]:
    """Sensible strategies of this space with a reason each, in the order to try them.

    The first five span the trade-off from 8 bits to 2. Values that the space does not allow are replaced by the
    nearest allowed one; strategies it refuses are left out; offered methods that none of them uses follow with their
    defaults, so that every method is tried, those that train last.

    Args:
        space: the methods on offer.
        limit: how many at most.

    Returns:
        Pairs of a legal strategy in canonical form and its reason; no two are equivalent.
    """
    wanted = [(_fulfil(space, wishes), reason) for wishes, reason in _WISHES]
    named = {stage.method for strategy, _ in wanted if strategy for stage in strategy.stages}
    for method in sorted(space.offered, key=lambda method: method.trains):
        if method.name not in named:
            default = Strategy(stages=(Stage(method=method.name),))
            wanted.append((default, f"{method.name} with its defaults, to have tried it once"))
    chosen: dict[str, tuple[Strategy, str]] = {}
    for strategy, reason in wanted:
        if strategy is None or space.problem_with(strategy):
            continue
        plain = canonical(space, strategy)
        if not plain.is_baseline:
            chosen.setdefault(plain.key, (plain, reason))
    return tuple(chosen.values())[:limit]


def _fulfil(space: SearchSpace, wishes: tuple[Wish, ...]) -> Strategy | None:
    stages = []
    for names, values in wishes:
        method = next((method for name in names for method in space.offered if method.name == name), None)
        if method is None:
            return None
        stages.append(Stage(method=method.name, parameters=_nearest(method, values)))
    return Strategy(stages=tuple(stages))


def _nearest(method: MethodDescription, values: dict[str, ParameterValue]) -> dict[str, ParameterValue]:
    pairs = ((method.parameter(name), value) for name, value in values.items())
    return {parameter.name: _closest(parameter, value) for parameter, value in pairs if parameter is not None}


def _closest(parameter: Parameter, wished: ParameterValue) -> ParameterValue:
    allowed = parameter_values(parameter)
    if wished in allowed or isinstance(wished, bool | str):
        return wished if wished in allowed else parameter.default
    numbers = [value for value in allowed if isinstance(value, int | float) and not isinstance(value, bool)]
    return min(numbers, key=lambda value: abs(value - wished)) if numbers else parameter.default
