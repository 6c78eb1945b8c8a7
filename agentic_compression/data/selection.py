"""What a user's dataset text and task names choose: benchmarks with weights, and some of their tasks."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Sequence

from agentic_compression.errors import DatasetError

__all__ = ["benchmark_weights", "check_tasks"]

_PART = re.compile(r"\s*([A-Za-z0-9_]+)\s*(?:=\s*([0-9.eE+-]+)\s*)?")


def benchmark_weights(dataset: str) -> dict[str, float] | None:
    """Names and weights of ``arc=2,hellaswag``: 1 where none is given; None when the text names a file instead.

    Raises:
        DatasetError: when a weight is not a positive number, or a name comes twice with different weights.
    """
    weights: dict[str, float] = {}
    for part in dataset.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            return None
        name, weight = match[1], _weight(match[1], match[2])
        if weights.setdefault(name, weight) != weight:
            raise DatasetError(f"{name} must have one weight, got {weights[name]:g} and {weight:g}; name it once")
    return weights


def _weight(name: str, text: str | None) -> float:
    try:
        weight = 1.0 if text is None else float(text)
    except ValueError:
        weight = math.nan
    if not (0 < weight < math.inf):
        raise DatasetError(f"the weight of {name} must be a positive number, got {text!r}; write {name}=2")
    return weight


def check_tasks(asked: Sequence[str], existing: Iterable[str], dataset: str) -> Collection[str]:
    """The names asked for, each of which must exist.

    Raises:
        DatasetError: when none is asked for or one does not exist, with those that do.
    """
    known = list(dict.fromkeys(existing))
    if not asked:
        raise DatasetError(f"tasks must name one of {dataset}, got none; leave them out to ask all")
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DatasetError(f"{dataset} has no task {name!r}; {hint}it has: {', '.join(known)}")
    return set(asked)
