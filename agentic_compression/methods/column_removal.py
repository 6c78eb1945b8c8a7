"""Removing input columns of a linear with the least damage to its output, and repairing the columns that stay.

With ``G`` the mean of ``x xᵀ`` over the inputs, the error ``E |W x - W' x_S|²`` of keeping only the columns ``S`` is
smallest for ``W' = W G[:, S] G[S, S]⁻¹``, and removing a set ``R`` then costs ``tr(W_R (G⁻¹[R, R])⁻¹ W_Rᵀ)``: Optimal
Brain Surgeon for whole structures (Kurtic, Frantar and Alistarh 2023, ZipLM, arXiv:2302.04089, §3.1). Sets are taken
one after the other, the cheapest first, because the cost of one changes when another is gone.

Damping adds a multiple of the identity to ``G``. In the least squares it pulls ``W'`` towards the weights as they were:
the minimum is that of ``E |W x - W' x_S|² + λ |W_S - W'|²``.
"""

from __future__ import annotations

import torch

from agentic_compression.errors import CompressionError

__all__ = ["DAMP", "ColumnRemoval", "damped", "repaired"]

DAMP = 0.01
"""Times the mean of the Gram matrix's diagonal."""


def damped(gram: torch.Tensor, name: str) -> torch.Tensor:
    """The Gram matrix in float64 with damping on its diagonal, which makes it invertible.

    Args:
        gram: ``(in_features, in_features)``.
        name: of the layer, for the error.

    Raises:
        CompressionError: when it holds NaN or infinity.
    """
    matrix = gram.to(torch.float64, copy=True)
    if not bool(torch.isfinite(matrix).all()):
        raise CompressionError(
            f"{name} gets NaN or infinite activations from the calibration text; check the model, or load it in float32"
        )
    mean = float(matrix.diagonal().mean())
    matrix.diagonal().add_(DAMP * mean if mean > 0 else 1.0)
    return matrix


def repaired(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """``W G[:, S] G[S, S]⁻¹``: the kept columns that come closest to the output of all.

    Args:
        weight: ``(out_features, in_features)``.
        gram: of the inputs, damped, float64.
        kept: the columns ``S``.

    Returns:
        float64 ``(out_features, kept)``.
    """
    lower = torch.linalg.cholesky(gram[kept][:, kept])
    return torch.cholesky_solve(gram[kept] @ weight.to(torch.float64).T, lower).T


class ColumnRemoval:
    """The weight and the inverse Gram matrix of the columns that are still there, as columns are removed."""

    def __init__(self, weight: torch.Tensor, gram: torch.Tensor) -> None:
        """Begin with all columns.

        Args:
            weight: ``(out_features, in_features)``.
            gram: of the inputs, damped, float64.
        """
        self.left = torch.arange(gram.shape[0], device=gram.device)
        self._weight = weight.to(torch.float64)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))

    def column_costs(self) -> torch.Tensor:
        """What removing each of the columns left would add to the output's squared error, in their order."""
        return self._weight.square().sum(dim=0) / self._inverse.diagonal()

    def cost(self, columns: torch.Tensor) -> float:
        """What removing these columns together would add to the output's squared error."""
        at = self._positions(columns)
        part = self._weight[:, at]
        return float((part.T * torch.linalg.solve(self._inverse[at][:, at], part.T)).sum())

    def remove(self, columns: torch.Tensor) -> None:
        """Take these columns out and move the others to where the output changes least."""
        at = self._positions(columns)
        stay = torch.ones(self.left.shape[0], dtype=torch.bool, device=self.left.device)
        stay[at] = False
        across = self._inverse[at][:, stay]
        solved = torch.linalg.solve(self._inverse[at][:, at], across)
        self._weight = self._weight[:, stay] - self._weight[:, at] @ solved
        self._inverse = self._inverse[stay][:, stay] - across.T @ solved
        self.left = self.left[stay]

    def _positions(self, columns: torch.Tensor) -> torch.Tensor:
        return torch.searchsorted(self.left, columns.to(self.left.device))
