"""The factor of a damped Hessian's inverse that GPTQ works with, computed where the Hessian lies."""

from __future__ import annotations

import torch

from agentic_compression.errors import CompressionError

__all__ = ["inverse_factor"]

# Up to this width a float64 copy costs at most 134 MB; beyond, the factor is made in place of the float32 matrix.
_FLOAT64_UP_TO = 4096
_BLOCK = 512
_SMALLEST = 128
_STEPS = 4  # of ten times more damping each


def inverse_factor(hessian: torch.Tensor, damp: float) -> tuple[torch.Tensor, float]:
    """Upper ``U`` with ``(H + d·mean(diag H)·I)⁻¹ = Uᵀ U``, float32, and the share ``d`` of damping it took.

    From ``H = R Rᵀ`` with upper ``R``, a Cholesky factorisation that begins at the last row, follows ``U = R⁻¹``: two
    thirds of n³ operations, where inverting H and factorising the inverse takes four thirds and loses accuracy twice.
    Where the factorisation meets a pivot that is not positive it is done again with ten times the damping, at most
    three times.

    Args:
        hessian: symmetric float32 ``(n, n)``, overwritten.
        damp: share of the mean of the diagonal that is added to it.

    Raises:
        CompressionError: when no damping up to 1,000 times ``damp`` makes it positive definite.
    """
    n = hessian.shape[0]
    h = hessian.to(torch.float64) if n <= _FLOAT64_UP_TO else hessian
    diagonal = h.diagonal().clone()
    mean = float(diagonal.mean()) or 1.0
    for step in range(_STEPS):
        share = damp * 10**step
        h.diagonal().copy_(diagonal + share * mean)
        if _factorise(h):
            _invert(h)
            return (hessian.copy_(h) if h is not hessian else h), share
        _mirror(h)
    raise CompressionError(
        f"the Hessian of {n} inputs is not positive definite even with {share:g} of its mean diagonal added; "
        "use more calibration text or a larger damp_percent"
    )


def _factorise(h: torch.Tensor) -> bool:
    """Put ``R`` of ``H = R Rᵀ`` into the upper triangle; the lower one keeps ``H``. False when a pivot is not positive.

    By block columns from the last to the first, each first relieved of what the columns behind it account for.
    """
    n = h.shape[0]
    for end in range(n, 0, -_BLOCK):
        start = max(0, end - _BLOCK)
        behind = h[start:end, end:]
        pivot = h[start:end, start:end] - behind @ behind.T  # its upper triangle is right
        # Reversing rows and columns turns a factor that begins at the last row into the usual lower one.
        lower, info = torch.linalg.cholesky_ex(pivot.flip(0, 1))
        if int(info) or not bool(torch.isfinite(lower).all()):
            return False
        upper = lower.flip(0, 1)
        h[start:end, start:end] = upper.triu() + h[start:end, start:end].tril(-1)
        if start:
            above = h[:start, start:end]
            above.addmm_(h[:start, end:], behind.T, alpha=-1)
            above.copy_(torch.linalg.solve_triangular(upper.T, above, upper=False, left=False))
    return True


def _mirror(h: torch.Tensor) -> None:
    """Put the lower triangle, but not the diagonal, into the upper one."""
    n = h.shape[0]
    for start in range(0, n, _BLOCK):
        end = min(start + _BLOCK, n)
        pivot = h[start:end, start:end].tril(-1)
        h[start:end, start:end] = pivot + pivot.T
        h[start:end, end:] = h[end:, start:end].T


def _invert(r: torch.Tensor) -> None:
    """Invert an upper triangular matrix in place; what lies below its diagonal becomes zero.

    ``[[A, B], [0, C]]⁻¹ = [[A⁻¹, -A⁻¹ B C⁻¹], [0, C⁻¹]]``.
    """
    n = r.shape[0]
    if n <= _SMALLEST:
        eye = torch.eye(n, dtype=r.dtype, device=r.device)
        r.copy_(torch.linalg.solve_triangular(r.triu(), eye, upper=True))
        return
    half = n // 2
    a, b, c = r[:half, :half], r[:half, half:], r[half:, half:]
    for start in range(0, n - half, 2 * _BLOCK):
        part = b[:, start : start + 2 * _BLOCK]
        part.copy_(torch.linalg.solve_triangular(a, part, upper=True).neg_())
    for start in range(0, half, 2 * _BLOCK):
        part = b[start : start + 2 * _BLOCK]
        part.copy_(torch.linalg.solve_triangular(c, part, upper=True, left=False))
    r[half:, :half] = 0
    _invert(a)
    _invert(c)
