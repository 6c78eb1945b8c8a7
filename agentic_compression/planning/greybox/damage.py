"""How far a strategy takes the model from the original, in nats a token, and what accuracy is left at that distance.

Divergences of stages add up as long as they are small: each stage perturbs the logits, and perturbations that do not
know of each other add in square, which is what a divergence measures to second order. So the logarithm of a strategy's
divergence is modelled as

    ln KL = ln (sum over stages of exp(columns of the stage . beliefs)) + beliefs about healing

with Gaussian beliefs. The posterior is the usual Laplace approximation around the mode, which Gauss-Newton finds.
Accuracy falls with divergence along one curve a task, which a few episodes fix (``AccuracyCurve``). What a curve of
this shape does not explain is kept as noise, measured on the residuals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentic_compression.planning.greybox.features import Design

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["LEAST_KL", "AccuracyCurve", "Beliefs", "DamageModel", "below"]

LEAST_KL = 1e-6
_ROUNDS = 25
_INTERACTION = 0.35  # ln units: what stages do to each other beyond adding up


@dataclass(frozen=True)
class Beliefs:
    """Independent Gaussians over the columns; shapes ``(columns,)``."""

    mean: Array
    deviation: Array


class DamageModel:
    """The posterior over the columns, given beliefs and observations."""

    def __init__(self, beliefs: Beliefs, seen: Design, log_kl: Array, noise: Array) -> None:
        """Find the mode.

        Args:
            beliefs: before anything was measured.
            seen: the strategies whose divergence is known.
            log_kl: of these, ``(n,)``.
            noise: standard deviations of ``log_kl``, ``(n,)``.
        """
        self._beliefs, self._seen, self._log_kl, self._noise = beliefs, seen, log_kl, noise
        self.mode = beliefs.mean.copy()
        precision = np.diag(beliefs.deviation**-2)
        weights = noise**-2
        damping = 1.0
        cost = self._cost()
        information = precision
        for _ in range(_ROUNDS):
            if not len(seen):
                break
            value, slope = _forward(self.mode, seen)
            gradient = slope.T @ (weights * (log_kl - value)) - precision @ (self.mode - beliefs.mean)
            information = slope.T @ (weights[:, None] * slope) + precision
            step = np.linalg.solve(information + (damping - 1.0) * np.diag(np.diag(information)), gradient)
            before = self.mode
            self.mode = before + step
            trial = self._cost()
            if trial > cost + 1e-12:
                self.mode, damping = before, damping * 4
                if damping > 1e6:
                    break
                continue
            finished, cost, damping = cost - trial < 1e-9, trial, max(1.0, damping / 4)
            if finished:
                break
        self.covariance = np.linalg.inv(information)

    def predict(self, design: Design) -> tuple[Array, Array]:
        """Mean and standard deviation of ``ln KL``, each ``(n,)``."""
        value, slope = _forward(self.mode, design)
        variance = np.einsum("ij,ij->i", slope @ self.covariance, slope) + _INTERACTION**2
        return value, np.sqrt(variance)

    def _cost(self) -> float:
        prior = float((((self.mode - self._beliefs.mean) / self._beliefs.deviation) ** 2).sum())
        if not len(self._seen):
            return prior
        value, _ = _forward(self.mode, self._seen)
        return prior + float((((self._log_kl - value) / self._noise) ** 2).sum())


def _forward(mode: Array, design: Design) -> tuple[Array, Array]:
    """``ln KL`` and its derivative by the beliefs: ``(n,)`` and ``(n, columns)``."""
    each = design.rows @ mode
    damage = np.where(design.perturbs, each, -np.inf)
    stacked = np.concatenate([damage, np.full((len(each), 1), math.log(LEAST_KL))], axis=1)
    highest = stacked.max(axis=1, keepdims=True)
    share = np.exp(stacked - highest)
    total = share.sum(axis=1, keepdims=True)
    value = highest[:, 0] + np.log(total[:, 0]) + np.where(design.heals, each, 0.0).sum(axis=1)
    weight = share[:, :-1] / total + design.heals
    return value, (weight[:, None, :] @ design.rows)[:, 0]


class AccuracyCurve:
    """Accuracy at a divergence: ``floor + (baseline - floor) / (1 + (KL / half) ** steepness)``.

    Fitted to pairs by Gauss-Newton from Gaussian beliefs on ``ln half``, ``ln steepness`` and the logit of the floor
    as a share of the baseline.
    """

    _MEAN = np.array([math.log(0.6), math.log(0.9), -1.5])
    _DEVIATION = np.array([1.2, 0.3, 1.2])

    def __init__(self, baseline: float, log_kl: Array, accuracy: Array, noise: Array) -> None:
        self.baseline = baseline
        self.point = self._MEAN.copy()
        precision = np.diag(self._DEVIATION**-2)
        for _ in range(_ROUNDS if len(log_kl) else 0):
            value, slope = self._forward(log_kl)
            weights = noise**-2
            gradient = slope.T @ (weights * (accuracy - value)) - precision @ (self.point - self._MEAN)
            information = slope.T @ (weights[:, None] * slope) + precision
            step = np.linalg.solve(information, gradient)
            step *= min(1.0, 0.7 / max(1e-12, float(np.abs(step).max())))
            self.point = self.point + step
            if float(np.abs(step).max()) < 1e-6:
                break
        left = accuracy - self._forward(log_kl)[0] if len(log_kl) else np.zeros(0)
        degrees = len(left) + 4  # four imagined residuals of two points
        self.scatter = math.sqrt((float((left**2).sum()) + 4 * 0.02**2) / degrees)

    def __call__(self, log_kl: Array) -> Array:
        """Accuracy expected at these logarithms of a divergence."""
        return self._forward(np.asarray(log_kl, dtype=np.float64))[0]

    def _forward(self, log_kl: Array) -> tuple[Array, Array]:
        half, steep, floor = self.point
        steepness, share = math.exp(steep), 1 / (1 + math.exp(-floor))
        odds = np.exp(np.clip(steepness * (log_kl - half), -60, 60))
        kept = 1 / (1 + odds)
        value = self.baseline * (share + (1 - share) * kept)
        inner = self.baseline * (1 - share) * kept * (1 - kept)
        slope = np.stack(
            [inner * steepness, -inner * steepness * (log_kl - half), self.baseline * (1 - kept) * share * (1 - share)],
            axis=-1,
        )
        return value, slope


def below(levels: Array, quantiles: Array, scatter: float) -> Array:
    """Probability that a loss is at most each level, for losses given as equally likely quantiles with scatter.

    Args:
        levels: ``(levels,)``.
        quantiles: losses of accuracy by candidate, ``(candidates, quantiles)``.
        scatter: standard deviation around each.

    Returns:
        ``(candidates, levels)``.
    """
    from scipy.special import ndtr

    return np.asarray(ndtr((levels[None, None, :] - quantiles[:, :, None]) / scatter).mean(axis=1))
