"""The parameter count that a model's name states: the last resort, a guess with the author's own rounding."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["NamedSize", "size_in_name"]

_UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_MIXTURE = re.compile(r"(?<![a-z0-9.])(\d{1,3})x(\d{1,3}(?:\.\d{1,2})?)([mb])(?![a-z0-9])")
_ACTIVE = re.compile(r"(?<![a-z0-9])a(\d{1,4}(?:\.\d{1,2})?)([mb])(?![a-z0-9])")
_SIZE = re.compile(r"([a-z]*)(\d{1,4}(?:[._]\d{1,3})?)([kmbt])(\d)?(?![a-z0-9])")
_NOT_SIZES = frozenset({"a", "e", "v", "x", "q", "w", "r"})  # A3B active, E2B effective, v2, 8x7B, Q4, w4, r16
# Share of a dense Mistral-7B that is MLP and so is repeated by each expert: 3·4096·14336·32 of 7,241,732,096.
_MLP_SHARE = 0.778


@dataclass(frozen=True)
class NamedSize:
    """Total parameters as a name states them, with how they were read."""

    parameters: int
    detail: str


def size_in_name(model: str) -> NamedSize | None:
    """Read ``7b``, ``125m``, ``1.5B``, ``7b1``, ``stories260K``, ``8x7B`` or ``30B-A3B`` in the last part of a name.

    Versions (``v0.1``, ``Llama-3``, ``Qwen2.5``), context lengths (``-128k``, ``-1M`` beside a size), bit widths
    (``4bit``) and token counts (``-3T`` beside a size) are not sizes. ``ExSb`` is a mixture of E experts that share
    attention and embeddings: the Mixtral rule ``S·((1 − f) + E·f)`` with the MLP share f = 0.778 of the dense model
    gives 45.1e9 for 8x7B (really 46.7e9) and 141.8e9 for 8x22B (really 140.6e9).

    Returns:
        The total, or None when the name states none.
    """
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    if match := _MIXTURE.search(name):
        experts, each = int(match[1]), float(match[2]) * _UNITS[match[3]]
        total = each * ((1 - _MLP_SHARE) + experts * _MLP_SHARE)
        return _named(
            total, f"{match[0]}: {experts} experts that share attention, {each / 1e9:g}e9·(0.222 + {experts}·0.778)"
        )
    found: dict[str, tuple[float, str]] = {}
    for match in _SIZE.finditer(name):
        prefix, number, unit, tenth = match.groups()
        if prefix in _NOT_SIZES or (unit == "k" and not prefix) or (tenth and unit != "b"):
            continue
        value = float(f"{number}.{tenth}") if tenth and number.isdigit() else float(number.replace("_", "."))
        if value > 0:
            found.setdefault(unit, (value * _UNITS[unit], match[0]))
    for unit in "bmkt":
        if unit in found:
            total, text = found[unit]
            active = _ACTIVE.search(name)
            note = f", of which {active[1]}{active[2].upper()} active a token" if active else ""
            return _named(total, f"'{text}' in the name{note}")
    return None


def _named(total: float, detail: str) -> NamedSize | None:
    return NamedSize(parameters=round(total), detail=detail) if total >= 1 else None
