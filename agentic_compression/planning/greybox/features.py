"""Strategies as numbers: one row a stage, one column for each method and each of its parameters.

A column is a belief one can have of a method: how much it changes at its reference setting (its own column is 1), and
how that changes with a parameter (in units in which a step means something: bits, doublings of a group, tenths of a
share). What parameters mean is known by name for the usual ones; any other number is scaled to its range and any other
choice has a column a value, so that methods from elsewhere are learned like our own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agentic_compression.checkpoints.gguf_bits import mixture_bits
from agentic_compression.checkpoints.gguf_types import FILE_TYPES
from agentic_compression.records import MethodDescription, Parameter, ParameterValue, SearchSpace, Stage, Strategy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["Columns", "Design", "bits_of"]

_REFERENCE_BITS = 4.0
_ROW = 1024.0  # weights of a row, where a group is a row
_FIXED_BITS = {"int8": 8.0, "nf4": 4.5}


def bits_of(stage: Stage) -> float | None:
    """Bits a weight takes after this stage; None when it does not change the number format.

    Scales of groups are not counted, those of a GGUF type are: they are part of it.
    """
    if stage.method in _FIXED_BITS:
        return _FIXED_BITS[stage.method]
    for name in ("bits", "target_bits"):
        value = stage.parameters.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    kind = stage.parameters.get("type")
    return mixture_bits(kind).overall if kind in FILE_TYPES else None


@dataclass(frozen=True)
class Design:
    """Strategies as numbers.

    Attributes:
        rows: their stages, ``(n, stages, columns)``, padded with zeros.
        perturbs: stages that change the model, ``(n, stages)``.
        heals: stages that train it back, ``(n, stages)``; padding is neither.
        log_size: logarithm of the size in proportion to the baseline's that arithmetic gives, ``(n,)``.
    """

    rows: Array
    perturbs: NDArray[np.bool_]
    heals: NDArray[np.bool_]
    log_size: Array

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Sequence[int]) -> Design:
        """Some of them."""
        picked = list(places)
        return Design(self.rows[picked], self.perturbs[picked], self.heals[picked], self.log_size[picked])

    def widened(self, columns: int) -> Design:
        """The same with so many columns, the further ones 0."""
        import numpy as np

        more = columns - self.rows.shape[2]
        return Design(np.pad(self.rows, ((0, 0), (0, 0), (0, more))), self.perturbs, self.heals, self.log_size)

    def joined(self, other: Design) -> Design:
        """Both, one after the other."""
        import numpy as np

        stages = max(self.rows.shape[1], other.rows.shape[1])
        both = (self._padded(stages), other._padded(stages))
        return Design(
            np.concatenate([one.rows for one in both]),
            np.concatenate([one.perturbs for one in both]),
            np.concatenate([one.heals for one in both]),
            np.concatenate([one.log_size for one in both]),
        )

    def _padded(self, stages: int) -> Design:
        import numpy as np

        more = stages - self.rows.shape[1]
        if not more:
            return self
        flags = ((0, 0), (0, more))
        return Design(
            np.pad(self.rows, (*flags, (0, 0))), np.pad(self.perturbs, flags), np.pad(self.heals, flags), self.log_size
        )

    @property
    def last_and_earlier(self) -> Array:
        """The earlier stages' columns added up, then the last stage's, ``(n, 2 * columns)``."""
        import numpy as np

        last = np.maximum((self.perturbs | self.heals).sum(axis=1) - 1, 0)
        picked = self.rows[np.arange(len(self.rows)), last]
        return np.concatenate([self.rows.sum(axis=1) - picked, picked], axis=1)


@dataclass
class Columns:
    """The columns that the methods of a space have, in a fixed order.

    Attributes:
        space: the methods.
        sources: other models whose results are known, with how alike they are to this one in [0, 1]; each has a column
            ``*@source`` for how far it stands from this one.
        names: ``*`` for any stage that changes the model, ``*category``, ``method``, ``method.parameter`` or
            ``method.parameter=value``. What models have in common with themselves, such as one that little disturbs,
            is learned of all methods from any. ``=form`` and ``=form.parameter`` are shared by methods that store
            weights in one form, which cost alike to serve.
    """

    space: SearchSpace
    sources: tuple[tuple[str, float], ...] = ()
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Lay the columns out."""
        changing = [method.category for method in self.space.methods if method.category != "healing"]
        self.names += ["*", *(f"*{category}" for category in dict.fromkeys(changing))]
        for method in self.space.methods:
            self.names.append(method.name)
            for parameter in method.parameters:
                if _is_number(parameter):
                    self.names.append(f"{method.name}.{parameter.name}")
                else:
                    self.names += [f"{method.name}.{parameter.name}={value}" for value in parameter.choices[1:]]
        stored = Counter(method.stored_as for method in self.space.methods if method.stored_as)
        self._forms = {form for form, methods in stored.items() if methods > 1}
        for method in self.space.methods:
            if form := self.form_of(method):
                units = (parameter.name for parameter in method.parameters if parameter.name in _UNITS)
                self.names += [
                    name for name in (form, *(_of_form(form, unit) for unit in units)) if name not in self.names
                ]
        self.names += [f"*@{source}" for source, _ in self.sources]
        self._place = {name: index for index, name in enumerate(self.names)}
        self._methods = {method.name: method for method in self.space.methods}

    def form_of(self, method: MethodDescription) -> str:
        """The column of the form in which it stores weights; empty where no other method stores them so."""
        return f"={method.stored_as}" if method.stored_as in self._forms else ""

    def design(self, strategies: Sequence[Strategy], log_sizes: Sequence[float], sources: Sequence[str] = ()) -> Design:
        """Strategies as numbers.

        Args:
            strategies: in canonical form.
            log_sizes: the logarithms of the sizes that arithmetic gives them.
            sources: which of ``sources`` each was measured on, empty for this model; all this model's when left out.
        """
        import numpy as np

        longest = max((len(strategy.stages) for strategy in strategies), default=0) or 1
        values = np.zeros((len(strategies), longest, len(self.names)))
        perturbs, heals = (np.zeros((len(strategies), longest), dtype=bool) for _ in range(2))
        for row, strategy in enumerate(strategies):
            for number, stage in enumerate(strategy.stages):
                method = self._methods.get(stage.method)
                healing = method is not None and method.category == "healing"
                (heals if healing else perturbs)[row, number] = True
                for name, value in self._stage(stage):
                    values[row, number, self._place[name]] = value
                if sources and sources[row] and not healing:
                    values[row, number, self._place[f"*@{sources[row]}"]] = 1.0
        return Design(values, perturbs, heals, np.array(log_sizes, dtype=np.float64))

    def _stage(self, stage: Stage) -> list[tuple[str, float]]:
        method = self._methods.get(stage.method)
        if method is None:
            return []
        found = [(method.name, 1.0)]
        if method.category != "healing":
            found += [("*", 1.0), (f"*{method.category}", 1.0)]
        form = self.form_of(method)
        if form:
            found.append((form, 1.0))
        for parameter in method.parameters:
            value = stage.parameters.get(parameter.name, parameter.default)
            name = f"{method.name}.{parameter.name}"
            if _is_number(parameter):
                found.append((name, _scaled(parameter, value)))
                if form and parameter.name in _UNITS:
                    found.append((_of_form(form, parameter.name), _scaled(parameter, value)))
            elif f"{name}={value}" in self._place:
                found.append((f"{name}={value}", 1.0))
        return found


def _is_number(parameter: Parameter) -> bool:
    if parameter.kind != "choice" or parameter.name == "type":
        return parameter.name != "type" or all(value in FILE_TYPES for value in parameter.choices)
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in parameter.choices)


_UNITS: dict[str, Callable[[float], float]] = {
    "bits": lambda number: number - _REFERENCE_BITS,
    "target_bits": lambda number: number - _REFERENCE_BITS,
    "group_size": lambda number: math.log2((number if number > 0 else _ROW) / 64),
    "sparsity": lambda number: (number - 0.3) / 0.1,
    "share": lambda number: (number - 0.3) / 0.1,
    "rank_ratio": lambda number: (number - 0.8) / 0.1,
    "steps": lambda number: math.log10(max(number, 1.0)) - 2,
    "rank": lambda number: math.log10(max(number, 1.0)) - 2,
}
"""Numbers by the name of their parameter in units in which a step means about as much anywhere in the range."""


def _of_form(form: str, parameter: str) -> str:
    """The column that methods share for what means the same to who reads the form."""
    return f"{form}.{'bits' if parameter == 'target_bits' else parameter}"


def _scaled(parameter: Parameter, value: ParameterValue) -> float:
    if isinstance(value, str):
        return (mixture_bits(value).overall if value in FILE_TYPES else _REFERENCE_BITS) - _REFERENCE_BITS
    number = float(value)
    if parameter.name in _UNITS:
        return _UNITS[parameter.name](number)
    values = [float(v) for v in parameter.choices if isinstance(v, int | float)]
    low = parameter.low if parameter.low is not None else min(values, default=0.0)
    high = parameter.high if parameter.high is not None else max(values, default=1.0)
    return (number - low) / (high - low) - 0.5 if high > low else 0.0
