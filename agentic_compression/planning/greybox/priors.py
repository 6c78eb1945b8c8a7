"""What is believed of methods before anything was measured: monotone in bits, sparsity and rank, and wide.

Numbers are orders of magnitude for language models of billions of parameters, from published perplexities: a rise of
the logarithm of perplexity is about what the divergence is. Half the weights of Llama 2 7B pruned by Wanda take 5.12
to 6.42, 0.23 nats (its README); GPTQ with groups of 128 adds about 0.03 at four bits and 0.15 at three; a fifth of the
rank removed by SVD-LLM adds about 0.3. Other models stand far from these, all methods together: that is a belief of its
own. All are means of wide Gaussians: a few episodes outweigh them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from agentic_compression.planning.greybox.damage import Beliefs
from agentic_compression.planning.greybox.features import Columns
from agentic_compression.records import Category, MethodDescription

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["cost_deviations", "damage_beliefs", "time_expectations"]

_AT_REFERENCE: dict[Category, tuple[float, float]] = {
    "quantization": (math.log(0.02), 1.3),
    "pruning": (math.log(0.03), 1.3),
    "low_rank": (math.log(0.3), 1.3),
    "healing": (-0.6, 0.6),
}
"""ln KL at four bits, 0.3 sparsity, 0.8 of the rank; of healing, what it takes off the others' ln KL."""

_PARTS_REMOVED = (math.log(0.2), 1.5)
"""ln KL where 0.3 of the layers, heads or channels are removed whole."""

_FROM_THE_USUAL, _SHARED_BY_CATEGORY = 1.5, 0.7
"""How far a model may stand from the usual one, for all methods and for those of a category."""

_ALIKE, _UNLIKE = 0.3, 4.0
"""How far another model may stand from this one in a situation that is the same, and in one with nothing in common."""

_OF_A_FORM = 0.01
"""What the form in which weights are stored does to the outputs: nothing, as far as it is known."""

_WITHIN_A_FORM = 0.5
"""How far methods that store weights in one form differ in a cost, over how far others do."""

_SLOPES: dict[str, tuple[float, float]] = {
    "bits": (-1.5, 0.5),
    "target_bits": (-1.5, 0.5),
    "type": (-1.5, 0.5),
    "group_size": (0.2, 0.2),
    "sparsity": (1.0, 0.35),
    "share": (0.7, 0.35),
    "rank_ratio": (-0.6, 0.35),
    "steps": (-0.2, 0.2),
}
_FORMATS = {"int8": (math.log(1e-3), 1.3), "nf4": (math.log(0.015), 1.3)}


def damage_beliefs(columns: Columns) -> Beliefs:
    """Beliefs on ``ln KL`` by column."""
    mean, deviation = np.zeros(len(columns.names)), np.zeros(len(columns.names))
    methods = {method.name: method for method in columns.space.methods}
    apart = {f"*@{source}": _ALIKE + _UNLIKE * (1 - alike) for source, alike in columns.sources}
    for index, name in enumerate(columns.names):
        if name.startswith("="):
            deviation[index] = _OF_A_FORM
            continue
        if name.startswith("*"):
            deviation[index] = apart.get(name, _FROM_THE_USUAL if name == "*" else _SHARED_BY_CATEGORY)
            continue
        method, _, parameter = name.partition(".")
        mean[index], deviation[index] = _belief(methods[method], parameter)
    return Beliefs(mean, deviation)


def _belief(method: MethodDescription, parameter: str) -> tuple[float, float]:
    if not parameter:
        if method.category == "pruning" and method.parameter("share") is not None:
            return _PARTS_REMOVED
        return _FORMATS.get(method.name) or _AT_REFERENCE[method.category]
    if method.category == "healing":
        return (-0.1, 0.2)
    return _SLOPES.get(parameter, (0.0, 0.3))


def time_expectations(columns: Columns) -> Array:
    """What each column is believed to add to the logarithm of an episode's seconds: training, and its steps."""
    methods = {method.name: method for method in columns.space.methods}
    found = np.zeros(len(columns.names))
    for index, name in enumerate(columns.names):
        method, _, parameter = name.partition(".")
        if method in methods and methods[method].trains and parameter in {"", "steps"}:
            found[index] = math.log(10)  # a hundred steps take ten times an untrained episode, a decade ten times more
    return found


def cost_deviations(columns: Columns, intercept: float, slope: float) -> Array:
    """Standard deviations of what methods and their parameters do to the logarithm of a cost beyond arithmetic."""
    shared = {"*", *(f"*{method.category}" for method in columns.space.methods)}
    formed = {method.name for method in columns.space.methods if columns.form_of(method)}
    return np.array(
        [
            slope if "." in name or name in shared else intercept * (_WITHIN_A_FORM if name in formed else 1.0)
            for name in columns.names
        ]
    )
