"""Expected hypervolume improvement, exact over candidates whose costs are known and whose accuracy is not.

At a fixed loss of accuracy ``t`` a candidate with costs ``c`` adds the four-dimensional volume that its box of costs
has beyond the boxes of those members whose loss is at most ``t``. That volume changes only at the members' losses, so
the expected improvement is a finite sum: volume between two losses, times the integral of the probability that the
candidate's loss is at most ``t``. No sampling is involved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import moocore
import numpy as np

from agentic_compression.planning.greybox.damage import below

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["added_volumes", "expected_gain"]

_LEVELS = 129


def expected_gain(
    members: Array, costs: Array, quantiles: Array, scatter: float, weight: Array | None = None, best: int | None = None
) -> Array:
    """Expected share of the reference box that each candidate adds.

    Args:
        members: normalised losses of what was measured, ``(members, 5)``, the loss of accuracy first, the reference
            at 1.
        costs: normalised costs of the candidates, ``(candidates, 4)``.
        quantiles: equally likely losses of accuracy by candidate, ``(candidates, quantiles)``.
        scatter: standard deviation around each quantile.
        weight: what each gain is multiplied with, such as the probability of being carried out, ``(candidates,)``.
        best: only so many of the largest are wanted. They are exact; others may be given as 0 where a bound shows that
            they are smaller.

    Returns:
        ``(candidates,)``, in the unit of ``pareto.hypervolume``, weighted.
    """
    if not len(costs):
        return np.zeros(0)
    inside = members[(members < 1).all(axis=1)]
    if len(inside):
        inside = inside[moocore.is_nondominated(inside, keep_weakly=False)]
    inside = inside[np.argsort(inside[:, 0], kind="stable")]
    edges = np.concatenate([[0.0], inside[:, 0], [1.0]])
    levels: Array = np.linspace(0.0, 1.0, _LEVELS, dtype=np.float64) ** 2  # finer where losses are small
    probability = below(levels, quantiles, max(scatter, 1e-6))
    areas = (probability[:, 1:] + probability[:, :-1]) / 2 * np.diff(levels)
    integral = np.concatenate([np.zeros((len(costs), 1)), np.cumsum(areas, axis=1)], axis=1)
    widths = np.diff(np.stack([np.interp(edges, levels, row) for row in integral]), axis=1)
    factor = np.ones(len(costs)) if weight is None else weight
    bound = (_bounds(inside, costs) * widths).sum(axis=1) * factor
    found, exact = np.zeros(len(costs)), list[float]()
    for place in np.argsort(-bound, kind="stable"):
        if best is not None and len(exact) >= best and bound[place] <= sorted(exact)[-best]:
            break
        found[place] = float(added_volumes(inside, costs[place : place + 1])[0] @ widths[place]) * factor[place]
        exact.append(float(found[place]))
    return found


def _bounds(inside: Array, costs: Array) -> Array:
    """What ``added_volumes`` cannot exceed: the whole less what the one member covers that covers most."""
    whole = np.prod(np.maximum(0.0, 1 - costs), axis=1)
    if not len(inside):
        return whole[:, None]
    covered = np.prod(np.maximum(0.0, 1 - np.maximum(costs[:, None, :], inside[None, :, 1:])), axis=2)
    most = np.maximum.accumulate(covered, axis=1)
    return np.concatenate([whole[:, None], whole[:, None] - most], axis=1)


def added_volumes(inside: Array, costs: Array) -> Array:
    """Volume of costs that each candidate adds beside the first k members, k from 0 to all.

    Args:
        inside: members within the reference, ``(members, 5)``, by rising loss of accuracy.
        costs: ``(candidates, 4)``.

    Returns:
        ``(candidates, members + 1)``.
    """
    found = np.zeros((len(costs), len(inside) + 1))
    reference = np.ones(costs.shape[1] if costs.ndim == 2 else 4)
    for row, cost in enumerate(costs):
        if not (cost < 1).all():
            continue
        whole = float(np.prod(1 - cost))
        found[row, 0] = whole
        limited = np.maximum(inside[:, 1:], cost)
        for count in range(1, len(inside) + 1):
            if (inside[count - 1, 1:] <= cost).all():
                break  # this member alone covers the candidate's costs: nothing is left from here on
            latest = limited[count - 1]
            if not (latest < 1).all() or (limited[: count - 1] <= latest).all(axis=1).any():
                found[row, count] = found[row, count - 1]  # beside the earlier ones it covers nothing more
                continue
            covered = float(moocore.hypervolume(limited[:count], ref=reference))
            found[row, count] = max(0.0, whole - covered)
    return found
