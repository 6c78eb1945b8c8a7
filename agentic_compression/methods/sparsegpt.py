"""SparseGPT: pruning that repairs, column by column, the error it has just made.

Idea: go through a layer's weight one input column at a time; what is zeroed there is made up for by the columns still
to come, so that the layer's output on calibration data changes least (Frantar and Alistarh 2023, arXiv:2301.00774,
after Optimal Brain Surgeon). Which weights to zero is decided anew every 128 columns, by ``w² / U_cc²`` of the weights
as updated by then; with the pattern ``2:4`` every four columns, two in each row. ``U`` is the upper Cholesky factor of
the inverse of the damped second moment of the inputs. Each decoder block sees the outputs of the blocks pruned before
it.

The paper compares scores among all rows of the 128 columns (``compare=block``). Comparing them within each row, as
Wanda does, is the default: on a Llama of 260 thousand parameters it multiplies perplexity by 1.17 and 3.5 at 30 and
50 % where the paper's way multiplies it by 1.21 and 4.5; at 70 % the paper's way is the better one.

Changes: weights of the linears of the decoder blocks. Weights that were zero stay zero and count. Not covered:
embeddings, the output embedding, quantization in the same pass. Zeros make files smaller, not the running model (see
``magnitude``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import (
    ActiveWhen,
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Range,
    Workload,
)
from agentic_compression.methods.sparsity import PRUNED_BY_SCORE, TWO_FOUR, UNSTRUCTURED

__all__ = ["METHOD", "SparseGptConfig", "apply", "prune_with_gram"]

_BLOCK_COLUMNS = 128
_STEP_COLUMNS = 32
_GROUP = 4
_DEAD = 1e-6
_FACTOR_FLOPS_PER_SECOND = 1e10  # float64, one CPU core


class SparseGptConfig(MethodConfig):
    """Parameters of SparseGPT."""

    sparsity: Annotated[float, Range(0.1, 0.9, step=0.1), ActiveWhen("pattern", UNSTRUCTURED)] = Field(
        default=0.5, description="fraction of the weights of every layer that become zero"
    )
    pattern: Annotated[str, Choice(UNSTRUCTURED, TWO_FOUR)] = Field(
        default=UNSTRUCTURED, description="anywhere in 128 columns, or two of every four consecutive inputs of a row"
    )
    compare: Annotated[str, Choice("row", "block"), ActiveWhen("pattern", UNSTRUCTURED)] = Field(
        default="row", description="weights compete within each row of 128 columns, or all rows of them together"
    )
    damp_percent: Annotated[float, Range(0.005, 0.1)] = Field(
        default=0.01, description="fraction of the Hessian's mean diagonal added to it"
    )


def apply(model: Any, config: SparseGptConfig, context: CompressionContext) -> Compressed:
    """Prune the linears of every decoder block, in place.

    Args:
        model: a causal language model with a list of decoder blocks.
        config: sparsity, pattern, comparison, damping.
        context: calibration windows, device, progress.

    Raises:
        CompressionError: when calibration data is missing, activations are not finite, or the pattern is 2:4 and a
            width is no multiple of four.
    """
    from agentic_compression.methods.layerwise import walk_blocks
    from agentic_compression.methods.linear_layers import uncovered_notes
    from agentic_compression.methods.sparsity import layers_to_prune

    layers_to_prune(model, "sparsegpt", config.pattern)
    notes = [*uncovered_notes(model)]
    for layers in walk_blocks(model, context, "sparsegpt"):
        _prune_layers(layers, config, notes)
    return Compressed(model=model, notes=tuple(notes))


def _prune_layers(layers: list[Any], config: SparseGptConfig, notes: list[str]) -> None:
    """Prune the linears of one block, and use up their statistics, which then free their memory."""
    known: tuple[Any, _Factor] | None = None
    while layers:
        name, linear, gram = layers.pop(0)
        if gram.count == 0:
            notes.append(f"{name}: no calibration token reached it, pruned by magnitude")
        if known is None or known[0] is not gram:  # linears that share their inputs follow each other
            known = (gram, _factor(gram.matrix, config.damp_percent))
        if known[1].damping > config.damp_percent:
            notes.append(f"{name}: damped with {known[1].damping:g} of the Hessian's mean diagonal")
        linear.weight.data.copy_(_prune(linear.weight.detach(), known[1], config))


def prune_with_gram(weight: Any, gram: Any, config: SparseGptConfig) -> Any:
    """Prune one weight for the inputs it sees.

    Args:
        weight: ``(out_features, in_features)``.
        gram: mean of ``x xᵀ`` over the inputs, ``(in_features, in_features)``; the Hessian up to a factor that changes
            neither masks nor updates.
        config: sparsity, pattern, comparison, damping.

    Returns:
        The pruned weight in the dtype of ``gram``. Unstructured, every row has ``round(sparsity * in_features)`` zeros,
        or all rows together ``round(sparsity * elements)``; more when there were more.
    """
    return _prune(weight, _factor(gram.clone(), config.damp_percent), config)


@dataclass(frozen=True)
class _Factor:
    """``U`` of ``H⁻¹ = Uᵀ U``, ``1 / U_cc²`` that squared weights are scored with, and the damping it took."""

    upper: Any
    salience: Any
    damping: float


def _factor(gram: Any, damp_percent: float) -> _Factor:
    """Factor of the inverse Hessian; uses ``gram`` up.

    Inputs that are always zero get a mean diagonal: their columns neither give nor take, and their weights score so low
    that they go first. Without any calibration token the Hessian is the identity.
    """
    from agentic_compression.methods.inverse_factor import inverse_factor

    diagonal = gram.diagonal()
    dead = diagonal == 0
    diagonal[dead] = float(diagonal.mean()) or 1.0
    upper, damping = inverse_factor(gram, damp_percent)
    salience = upper.diagonal().square().reciprocal()
    if not bool(dead.all()):
        salience[dead] = _DEAD * salience[~dead].min()
    return _Factor(upper=upper, salience=salience, damping=damping)


def _prune(weight: Any, factor: _Factor, config: SparseGptConfig) -> Any:
    import torch

    # Transposed, so that the weights of one column are side by side.
    w = weight.T.to(factor.upper.dtype, copy=True, memory_format=torch.contiguous_format)
    columns, rows = w.shape
    zero = w == 0
    for start in range(0, columns, _BLOCK_COLUMNS):
        end = min(start + _BLOCK_COLUMNS, columns)
        inside = slice(start, end)
        mask = zero[inside]
        if config.pattern == UNSTRUCTURED:
            compete = rows if config.compare == "block" else 1
            # Rounded cumulatively, so that the blocks' counts add up to the layer's.
            count = round(config.sparsity * compete * end) - round(config.sparsity * compete * start)
            mask |= _choose(w[inside], mask, factor.salience[inside], (count, compete))
        errors = _repair(w[inside], mask, factor, start, config.pattern)
        w[end:] -= factor.upper[inside, end:].T @ errors
    return w.T


def _choose(w: Any, zero: Any, salience: Any, wanted: tuple[int, int]) -> Any:
    """Which weights ``(columns, out_features)`` to zero, those that are zero first.

    ``wanted`` is how many, and among how many rows they compete.
    """
    from agentic_compression.methods.sparsity import lowest

    count, compete = wanted
    scores = (w.square() * salience[:, None]).masked_fill(zero, -1).T
    return lowest(scores.reshape(scores.shape[0] // compete, -1), count).view(scores.shape).T


def _repair(w: Any, mask: Any, factor: _Factor, start: int, pattern: str) -> Any:
    """Zero adjacent columns in place and let those among them still to come make up for it.

    Errors reach the rest of 32 columns at once and the columns behind those when the 32 are done, which makes most of
    the work matrix products.

    Args:
        w: ``(columns, out_features)``, updated by the columns before.
        mask: what becomes zero, like ``w``; with 2:4 what was zero, completed here.
        factor: of the whole weight.
        start: place of the first column in the whole weight.
        pattern: unstructured or 2:4.

    Returns:
        Errors by column over the factor's diagonal, ``(columns, out_features)``, owed to the columns after.
    """
    import torch

    columns = w.shape[0]
    upper, salience = (part[start : start + columns] for part in (factor.upper[:, start:], factor.salience))
    pivots = upper.diagonal().tolist()
    errors = torch.empty_like(w)
    for first in range(0, columns, _STEP_COLUMNS):
        last = min(first + _STEP_COLUMNS, columns)
        for column in range(first, last):
            if pattern == TWO_FOUR and column % _GROUP == 0:
                four = slice(column, column + _GROUP)
                mask[four] |= _choose(w[four], mask[four], salience[four], (_GROUP // 2, 1))
            errors[column] = torch.where(mask[column], w[column] / pivots[column], 0)
            w[column:last].addr_(upper[column, column:last], errors[column], alpha=-1)
            w[column].masked_fill_(mask[column], 0)
        w[last:] -= upper[first:last, last:columns].T @ errors[first:last]
    return errors


def _needs(workload: Workload, _: SparseGptConfig) -> Needs:
    """A walk with matrices, a float64 copy of the widest, the weight in float32 with its mask and 128 columns' errors.

    Columns take some 200 ns a weight on one core, factors 4/3 n³ operations.
    """
    from agentic_compression.methods.calibration_cost import walking_needs

    walk = walking_needs(workload, matrices=True)
    width, hidden = workload.widest_input, workload.hidden
    factors = workload.blocks * (3 * hidden**3 + width**3) * 4 / 3
    return Needs(
        peak_bytes=walk.peak_bytes + 8 * width**2 + 10 * width * hidden,
        seconds=walk.seconds + 200e-9 * workload.linear_parameters + factors / _FACTOR_FLOPS_PER_SECOND,
    )


METHOD = Method(
    name="sparsegpt",
    category="pruning",
    stored_as="masked",
    config=SparseGptConfig,
    apply=apply,
    summary="zero weights with calibration text and repair the error with those that stay; best at half and above",
    paper="Frantar and Alistarh 2023, SparseGPT, arXiv:2301.00774",
    needs_calibration=True,
    may_follow=("pruning",),
    may_not_follow=PRUNED_BY_SCORE,
    needs=_needs,
)
