"""pass@k from n samples of which c passed: Chen et al. 2021, arXiv 2107.03374, equation 1."""

from __future__ import annotations

import math

from agentic_compression.errors import UsageError

__all__ = ["pass_at_k"]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of ``k`` samples passes, estimated without bias from ``c`` passes in ``n`` samples.

    ``1 - C(n-c, k) / C(n, k)``: the share of the k-subsets of the n samples that hold at least one that passed. The
    quotient is taken as a product of ``c`` factors ``1 - k / i`` in log space, so that neither binomial overflows and a
    small chance keeps its digits.

    Raises:
        UsageError: not ``1 <= k <= n`` or not ``0 <= c <= n``.
    """
    if not 1 <= k <= n:
        raise UsageError(f"pass@k needs 1 <= k <= n, got k={k}, n={n}; draw at least k samples a problem")
    if not 0 <= c <= n:
        raise UsageError(f"the passing samples must lie in 0..{n}, got {c}")
    if c == 0:
        return 0.0
    if n - c < k:
        return 1.0
    return -math.expm1(math.fsum(math.log1p(-k / i) for i in range(n - c + 1, n + 1)))
