"""What is wrong with a value that may have one of several forms, in one message and without pydantic's own names."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

__all__ = ["one_of"]

_OTHER_FORM = {
    "bool_type",
    "int_type",
    "list_type",
    "model_attributes_type",
    "model_type",
    "string_type",
    "union_tag_invalid",
    "union_tag_not_found",
}
"""Faults of pydantic that say that a value has another form, not that this one is wrong in it."""


def one_of(forms: str) -> WrapValidator:
    """Annotates a union. Its faults lie at fields and indexes of the value, not at names of the union's members.

    Args:
        forms: what the value may be, such as ``a string or a list of strings``; said when it is none of them.
    """

    def check(value: Any, members: ValidatorFunctionWrapHandler) -> Any:
        try:
            return members(value)
        except ValidationError as error:
            faults = _of_nearest(error)
        if faults is None:
            said = {"forms": forms, "got": _describe(value)}
            raise PydanticCustomError("union", "must be {forms}, got {got}", said)
        raise ValidationError.from_exception_data("union", faults)

    return WrapValidator(check)


def _of_nearest(error: ValidationError) -> list[InitErrorDetails] | None:
    """Faults of the member that was meant: the one whose form fits, or that fits furthest into the value."""
    members = [list(faults) for _, faults in groupby(error.errors(), lambda fault: fault["loc"][:1])]
    chosen = next((faults for faults in members if all(fault["type"] not in _OTHER_FORM for fault in faults)), None)
    if chosen is None:
        depths = [max(len(fault["loc"]) for fault in faults) for faults in members]
        if max(depths) < 2 or depths.count(max(depths)) > 1:  # a member's name alone is no place
            return None
        chosen = members[depths.index(max(depths))]
    return [
        InitErrorDetails(type=fault["type"], loc=fault["loc"][1:], input=fault["input"], ctx=fault.get("ctx", {}))
        for fault in chosen
    ]


def _describe(value: Any) -> str:
    if not isinstance(value, list):
        return _kind(value)
    kinds = list(dict.fromkeys(_kind(item) for item in value))
    return f"a list with {' and '.join(kinds)}" if kinds else "an empty list"


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
