"""The in-place factor against numpy's inverse and Cholesky in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.errors import CompressionError
from agentic_compression.methods import inverse_factor as module
from agentic_compression.methods.inverse_factor import inverse_factor


def hessian(n: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(2 * n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x.T @ x / (2 * n)).to(torch.float32)


def reference(h: torch.Tensor, damp: float) -> np.ndarray:
    """Upper ``U`` with ``(H + damp·mean)⁻¹ = Uᵀ U``: the transposed lower factor of the inverse."""
    wide = h.double().numpy()
    damped = wide + damp * np.mean(np.diag(wide)) * np.eye(len(wide))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


@pytest.mark.parametrize("float64_up_to", [0, 4096])
@pytest.mark.parametrize("n", [1, 2, 127, 300, 1100])
def test_factor_equals_that_of_the_inverse(n: int, float64_up_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLOAT64_UP_TO", float64_up_to)
    h = hessian(n)
    expected = reference(h, 0.01)
    factor, share = inverse_factor(h, 0.01)
    assert share == 0.01
    assert factor.data_ptr() == h.data_ptr()
    np.testing.assert_allclose(factor.numpy(), expected, atol=2e-5 * np.abs(expected).max())


@given(n=st.integers(1, 60), seed=st.integers(0, 1000), damp=st.floats(0.001, 0.5))
@settings(deadline=None, max_examples=25)
def test_factor_is_upper_and_inverts(n: int, seed: int, damp: float) -> None:
    h = hessian(n, seed)
    damped = h.double() + damp * float(h.diagonal().mean()) * torch.eye(n, dtype=torch.float64)
    factor = inverse_factor(h.clone(), damp)[0].double()
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(n, dtype=torch.float64), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("n", [40, 700])
def test_more_damping_is_tried_until_it_is_positive_definite(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FLOAT64_UP_TO", 0)
    h = hessian(n)
    smallest = float(torch.linalg.eigvalsh(h.double())[0])
    h.diagonal().sub_(smallest + 0.05)  # now its smallest eigenvalue is about -0.05
    mean = float(h.diagonal().mean())
    kept = h.clone()
    factor, share = inverse_factor(h, 0.01)
    assert share == pytest.approx(0.1)
    expected = reference(kept, 0.1)
    np.testing.assert_allclose(factor.numpy(), expected, atol=1e-3 * np.abs(expected).max())
    assert mean > 0


def test_a_matrix_that_stays_indefinite_is_refused() -> None:
    with pytest.raises(CompressionError, match="not positive definite"):
        inverse_factor(torch.tensor([[1.0, 50.0], [50.0, 1.0]]), 0.001)
