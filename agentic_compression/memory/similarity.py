r"""How much one situation is like another: a number in [0, 1], symmetric, 1 for itself.

It is the weighted mean of seven parts,

.. math:: s(a, b) = \sum_i w_i s_i(a, b) / \sum_i w_i

* ``model`` 0.10: 1 for the same weights, else 0;
* ``family`` 0.20 and ``architecture`` 0.10: 1 for the same name, else 0;
* ``size`` 0.25: :math:`\exp(-|\log_{10} p_a - \log_{10} p_b|)` of the parameters, 0.37 for ten times as many;
* ``task`` 0.20: common tasks over all tasks (Jaccard); without tasks the dataset's name is compared;
* ``device`` 0.10: 1 for the same device, 0.5 for another one of the same kind, else 0;
* ``objective`` 0.05: common words over all words of the two wishes.

A part that neither side knows is left out of both sums; one that only one side knows counts 0.5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from agentic_compression.records import Experience, Situation

__all__ = ["WEIGHTS", "Context", "context_of", "similarity"]

WEIGHTS = {
    "model": 0.10,
    "family": 0.20,
    "architecture": 0.10,
    "size": 0.25,
    "task": 0.20,
    "device": 0.10,
    "objective": 0.05,
}
"""Of the parts; they add up to 1."""

_HALF_KNOWN = 0.5


@dataclass(frozen=True)
class Context:
    """What two situations are compared by; an empty text, an empty set and None stand for not known."""

    model: str = ""
    family: str = ""
    architecture: str = ""
    parameters: int | None = None
    dataset: str = ""
    tasks: frozenset[str] = frozenset()
    device: str = ""
    objective: frozenset[str] = frozenset()


def context_of(source: Experience | Situation) -> Context:
    """The context in which something was measured, or in which something is to be planned."""
    facts = source if isinstance(source, Experience) else source.spec
    return Context(
        model=(facts.digest or "") if facts else "",
        family=_known(facts.family) if facts else "",
        architecture=_known(facts.architecture) if facts else "",
        parameters=facts.parameters if facts else None,
        dataset=source.dataset,
        tasks=frozenset(source.tasks),
        device=source.device,
        objective=frozenset(re.findall(r"\w+", source.objective.lower())),
    )


def similarity(a: Context, b: Context) -> float:
    """How alike two contexts are, in [0, 1]."""
    if a == b:
        return 1.0
    weighted = total = 0.0
    for name, weight in WEIGHTS.items():
        part = _PARTS[name](a, b)
        if part is not None:
            weighted += weight * part
            total += weight
    return min(1.0, weighted / total) if total else 0.0


def device_kind(device: str) -> str:
    """``cuda`` of ``cuda:0 (NVIDIA H200)``."""
    return re.split(r"[:\s]", device, maxsplit=1)[0]


def _known(name: str) -> str:
    return "" if name == "unknown" else name


def _same(one: str, other: str) -> float | None:
    if not one and not other:
        return None
    return _HALF_KNOWN if not one or not other else float(one == other)


def _common(one: frozenset[str], other: frozenset[str]) -> float | None:
    if not one and not other:
        return None
    return len(one & other) / len(one | other) if one and other else _HALF_KNOWN


def _size(a: Context, b: Context) -> float | None:
    if a.parameters is None or b.parameters is None:
        return None if a.parameters == b.parameters else _HALF_KNOWN
    return math.exp(-abs(math.log10(a.parameters) - math.log10(b.parameters)))


def _task(a: Context, b: Context) -> float | None:
    return _common(a.tasks, b.tasks) if a.tasks and b.tasks else _same(a.dataset, b.dataset)


def _device(a: Context, b: Context) -> float | None:
    same = _same(a.device, b.device)
    return 0.5 if same == 0.0 and device_kind(a.device) == device_kind(b.device) else same


_PARTS: dict[str, Callable[[Context, Context], float | None]] = {
    "model": lambda a, b: _same(a.model, b.model),
    "family": lambda a, b: _same(a.family, b.family),
    "architecture": lambda a, b: _same(a.architecture, b.architecture),
    "size": _size,
    "task": _task,
    "device": _device,
    "objective": lambda a, b: _common(a.objective, b.objective),
}
