"""Size, memory, latency and CO2 of a strategy as multiples of the baseline's: arithmetic first, the rest learned.

The logarithm of each cost is what arithmetic on the model's shapes says (``arithmetic``) plus a linear model over the
stages' columns, with the last stage apart: it decides the format and the engine that serves. Beliefs are Gaussian and
the posterior is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentic_compression.checkpoints.gguf_bits import USUAL_SHAPE, DenseShape, mixture_bits
from agentic_compression.checkpoints.gguf_types import FILE_TYPES
from agentic_compression.planning.greybox.features import Columns, Design, bits_of
from agentic_compression.planning.greybox.priors import cost_deviations
from agentic_compression.records import ModelSpec, Strategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["COSTS", "CostModel", "Shares", "shares_of", "size_ratio"]

_ROUNDS, _IMAGINED = 3, 6.0
"""Of estimating the noise, which is believed to be as large as so many residuals say."""

COSTS = ("latency_ms", "memory_gb", "model_size_gb", "co2_grams")


@dataclass(frozen=True)
class _Belief:
    of_size: float  # how much of the logarithm of the size is believed to show in this cost
    intercept: float
    slope: float
    noise: float


_BELIEFS = {
    "seconds": _Belief(0.0, 1.0, 0.3, 0.4),
    "latency_ms": _Belief(0.3, 0.6, 0.08, 0.15),
    "memory_gb": _Belief(0.7, 0.5, 0.05, 0.08),
    "model_size_gb": _Belief(1.0, 0.08, 0.02, 0.025),
    "co2_grams": _Belief(0.3, 0.6, 0.08, 0.15),
}


@dataclass(frozen=True)
class Shares:
    """Parts of a model's bytes: MLP and attention matrices; the rest is embeddings and norms.

    Attributes:
        mlp: share of the MLPs' matrices.
        attention: share of attention's matrices.
        stored_bits: bits a weight of the model as it is.
        shape: widths that decide what a GGUF type comes to.
    """

    mlp: float
    attention: float
    stored_bits: float
    shape: DenseShape = USUAL_SHAPE


def shares_of(spec: ModelSpec | None) -> Shares:
    """From the model's shapes; those of a usual 1 billion parameter Llama where they are not known."""
    if spec is None or not (spec.layers and spec.hidden_size and spec.heads):
        return Shares(mlp=0.6, attention=0.25, stored_bits=16.0)
    hidden, head = spec.hidden_size, spec.head_dim or spec.hidden_size // spec.heads
    attention = 2 * hidden * head * (spec.heads + (spec.kv_heads or spec.heads))
    matrices = 2 if spec.gated is False else 3
    mlp = matrices * hidden * (spec.intermediate_size or 4 * hidden) * max(1, spec.experts or 1)
    whole = max(spec.parameters, spec.layers * (attention + mlp))
    shape = DenseShape(
        layers=spec.layers,
        hidden=hidden,
        queries=head * spec.heads,
        keys=head * (spec.kv_heads or spec.heads),
        mlp=spec.intermediate_size or 4 * hidden,
        vocabulary=spec.vocabulary or USUAL_SHAPE.vocabulary,
        tied=bool(spec.tied_embeddings),
    )
    return Shares(spec.layers * mlp / whole, spec.layers * attention / whole, 8 * spec.bytes_per_parameter, shape)


def size_ratio(strategy: Strategy, shares: Shares) -> float:
    """Bytes to be shipped over the baseline's, by arithmetic.

    Parts removed are gone; weights in fewer bits take these bits and their groups' scales; zeros are stored as a mask
    unless a later stage packs the weights into another format; GGUF packs the embeddings too, and multiplies layers of
    low rank out.
    """
    mlp, attention, rest = shares.mlp, shares.attention, max(0.0, 1 - shares.mlp - shares.attention)
    bits, sparse, rank, whole_file = shares.stored_bits, 0.0, 1.0, None
    for stage in strategy.stages:
        values = stage.parameters
        share, ratio = _number(values.get("share")), _number(values.get("rank_ratio"))
        if stage.method == "drop_channels":
            mlp *= 1 - share
        elif stage.method == "drop_heads":
            attention *= 1 - share
        elif stage.method == "drop_layers":
            mlp, attention = mlp * (1 - share), attention * (1 - share)
        elif ratio:
            rank *= ratio
        elif "sparsity" in values:
            sparse = (
                0.5
                if values.get("pattern", "unstructured") not in {"unstructured", ""}
                else _number(values["sparsity"])
            )
        if stage.method == "gguf" and values.get("type") in FILE_TYPES:
            whole_file = mixture_bits(str(values["type"]), shares.shape)
        elif (found := bits_of(stage)) is not None:
            group = _number(values.get("group_size"))  # 0 or less: one scale a row, which hardly counts
            bits, sparse = found + ((16 + found) / group if group > 0 else 0.0), 0.0
    if whole_file is not None:
        parts = ((mlp, whole_file.mlp), (attention, whole_file.attention), (rest, whole_file.embeddings))
        return sum(part * bits for part, bits in parts) / shares.stored_bits
    stored = bits / shares.stored_bits
    if sparse:
        stored = min(1.0, 1 - sparse + 1 / shares.stored_bits)
    return (mlp + attention) * rank * stored + rest


class CostModel:
    """One cost's posterior, given strategies that were measured.

    Attributes:
        noise: standard deviation of the logarithm around what the model says, in ln units.
    """

    def __init__(self, name: str, columns: Columns, expected: Array | None = None) -> None:
        """Beliefs before anything was measured.

        Args:
            name: of a cost, or ``seconds``.
            columns: of the space.
            expected: what each column is believed to add to the logarithm, ``(columns,)``; nothing when None.
        """
        self._belief = _BELIEFS[name]
        nothing = np.zeros(len(columns.names)) if expected is None else expected
        self._expected = np.concatenate([nothing, nothing])
        each = cost_deviations(columns, self._belief.intercept, self._belief.slope)
        self._prior = np.concatenate([each / 2, each]) ** 2
        self.noise = self._belief.noise
        self._mode = np.zeros(len(self._prior))
        self._covariance = np.diag(self._prior)

    def fit(self, design: Design, ratios: Array, elsewhere: Array | None = None) -> None:
        """Learn from measured ratios to the baseline.

        Args:
            design: what was measured.
            ratios: ``(n,)``.
            elsewhere: standard deviation of the logarithm by which each may be off because it was measured on another
                model or machine, ``(n,)``; 0 for the study's own.
        """
        if not len(ratios):
            return
        columns = design.last_and_earlier
        left = np.log(ratios) - self._belief.of_size * design.log_size - columns @ self._expected
        beyond = np.zeros(len(left)) if elsewhere is None else elsewhere
        for _ in range(_ROUNDS):
            weighted = columns / (self.noise**2 + beyond**2)[:, None]
            self._covariance = np.linalg.inv(np.diag(1 / self._prior) + weighted.T @ columns)
            self._mode = self._covariance @ (weighted.T @ left)
            own = (left - columns @ self._mode)[beyond == 0]
            imagined = _IMAGINED * self._belief.noise**2
            self.noise = math.sqrt((imagined + float((own**2).sum())) / (_IMAGINED + len(own)))

    def predict(self, design: Design) -> tuple[Array, Array]:
        """Mean and standard deviation of the logarithm of the ratio, each ``(n,)``."""
        columns = design.last_and_earlier
        variance = np.einsum("ij,ij->i", columns @ self._covariance, columns)
        mean = self._belief.of_size * design.log_size + columns @ (self._mode + self._expected)
        return mean, np.sqrt(np.maximum(variance, 0.0) + self.noise**2)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
