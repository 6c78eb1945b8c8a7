"""What of the methods is left where there is no calibration text."""

from __future__ import annotations

from math import prod

from agentic_compression.methods.interface import Method, parameters_of
from agentic_compression.records import MethodDescription, Parameter, ParameterValue

__all__ = ["without_calibration"]

_REASON = "needs calibration text, and the dataset has none"


def without_calibration(method: Method, description: MethodDescription, source: str = "") -> MethodDescription:
    """The description narrowed to the settings that use no calibration text; not available when there are none.

    A method that needs text for some of its settings only (``Method.calibrates``) keeps the others: one parameter is
    narrowed to the values that make the difference, and then the rest to what still uses no text.

    Args:
        method: the method.
        description: as it is offered otherwise.
        source: why there is no text, for the reason.
    """
    if not description.available or not (method.needs_calibration or method.trains or method.calibrates):
        return description
    found = () if method.trains else _settings_without_text(method)
    if found:
        return description.model_copy(update={"parameters": found, "needs_calibration": False})
    reason = f"{_REASON}: {source}" if source else _REASON
    return description.model_copy(update={"available": False, "unavailable_reason": reason})


def _settings_without_text(method: Method) -> tuple[Parameter, ...]:
    """The parameters narrowed so that every combination uses no text, in the way that leaves most combinations."""
    if not method.needs_calibration_for(method.config()):
        return _narrowed(method, {})
    ways = [
        _narrowed(method, {parameter.name: value})
        for parameter in parameters_of(method.config)
        for value in _values(parameter)
        if not _calibrates(method, {parameter.name: value})
    ]
    return max(ways, key=lambda way: prod(len(_values(parameter)) for parameter in way), default=())


def _narrowed(method: Method, fixed: dict[str, ParameterValue]) -> tuple[Parameter, ...]:
    """All parameters with the values that, together with those fixed, use no text."""
    kept = []
    for parameter in parameters_of(method.config):
        allowed = tuple(
            value for value in _values(parameter) if not _calibrates(method, {**fixed, parameter.name: value})
        )
        if len(allowed) == len(_values(parameter)):
            kept.append(parameter)
            continue
        default = parameter.default if parameter.default in allowed else allowed[0]
        values = {"kind": "choice", "choices": allowed, "default": default, "low": None, "high": None, "step": None}
        kept.append(parameter.model_copy(update=values))
    return tuple(kept)


def _values(parameter: Parameter) -> tuple[ParameterValue, ...]:
    """The values to try: all of a grid, the ends of a continuous range."""
    values = parameter.values()
    if values is not None:
        return values
    return tuple(value for value in (parameter.low, parameter.high, parameter.default) if value is not None)


def _calibrates(method: Method, values: dict[str, ParameterValue]) -> bool:
    return method.needs_calibration_for(method.config.model_validate(values))
