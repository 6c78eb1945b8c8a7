"""SVD-LLM: the output error is that of the whitened weight's discarded singular values, and nothing does better."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext
from agentic_compression.methods.asvd import AsvdConfig
from agentic_compression.methods.asvd import apply as apply_scaled
from agentic_compression.methods.asvd import factorize as factorize_scaled
from agentic_compression.methods.factorization import UNREACHED
from agentic_compression.methods.layerwise import Gram
from agentic_compression.methods.svd_llm import SvdLlmConfig, apply, factorize, whitener
from tests.unit.methods.tiny_models import random_windows, tiny_model


def inputs(columns: int, rows: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mixing


def output_error(difference: np.ndarray, x: np.ndarray) -> float:
    """Mean over the inputs of ``‖(W' - W) x‖²``, input by input."""
    return math.fsum(float(((difference @ row) ** 2).sum()) for row in x) / len(x)


@pytest.mark.parametrize("rank", [1, 7, 15])
def test_output_error_is_that_of_the_discarded_singular_values(rank: int) -> None:
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    x = inputs(16)
    gram = x.T @ x / len(x)
    down, up = factorize(weight, rank, gram)
    assert down.shape == (rank, 16)
    assert up.shape == (24, rank)
    damped = gram + 1e-4 * gram.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    values, vectors = np.linalg.eigh(damped.numpy())
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T  # another square root than Cholesky's
    tail = np.linalg.svd(weight.double().numpy() @ root, compute_uv=False)[rank:]
    difference = (up @ down - weight).numpy()
    damping = 1e-4 * float(gram.diagonal().mean()) * float((difference**2).sum())
    assert output_error(difference, x.numpy()) + damping == pytest.approx(float((tail**2).sum()), rel=1e-8)
    for other in (factorize(weight, rank), factorize_scaled(weight, rank, x.abs().mean(dim=0), 0.5)):
        worse = output_error((other[1] @ other[0] - weight).numpy(), x.numpy())
        assert output_error(difference, x.numpy()) < worse


def test_no_other_pair_found_by_alternating_least_squares_does_better() -> None:
    weight = torch.randn(12, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = inputs(10)
    gram = x.T @ x / len(x)
    down, up = factorize(weight, 4, gram)
    ours = output_error((up @ down - weight).numpy(), x.numpy())
    target = x @ weight.T
    for seed in range(5):
        up_t = torch.randn(4, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(300):
            z = torch.linalg.lstsq(up_t.T, target.T).solution.T
            down_t = torch.linalg.lstsq(x, z).solution
            up_t = torch.linalg.lstsq(x @ down_t, target).solution
        found = output_error((down_t @ up_t - weight.T).T.numpy(), x.numpy())
        assert ours <= found * 1.001  # the damping costs that little
    assert ours == pytest.approx(found, rel=0.01)  # and the alternation comes as close


def test_fewer_tokens_than_inputs_are_enough() -> None:
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(3))
    x = inputs(40, rows=8)
    down, up = factorize(weight, 8, (x.T @ x / 8).float())
    assert bool(torch.isfinite(down).all() & torch.isfinite(up).all())
    relative = output_error((up @ down - weight).numpy(), x.numpy()) / output_error(weight.double().numpy(), x.numpy())
    assert relative < 1e-3  # rank 8 holds all outputs of 8 inputs


def test_an_indefinite_second_moment_is_damped_until_it_is_not() -> None:
    """Sums of few tokens with a very large activation in float32."""
    gram = torch.tensor([[1.0, 1.001], [1.001, 1.0]])
    lower, share = whitener(gram)
    assert share == pytest.approx(1e-2)
    damped = gram.double() + 1e-2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(lower @ lower.T, damped)
    weight = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    down, up = factorize(weight, 1, gram)
    assert bool(torch.isfinite(down).all() & torch.isfinite(up).all())
    with pytest.raises(CompressionError, match=r"2 inputs is not positive definite even with 0\.1 of its mean"):
        whitener(torch.tensor([[1.0, 5.0], [5.0, 1.0]]))


def test_more_damping_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def indefinite(gram: Gram) -> torch.Tensor:
        lost = torch.linalg.eigvalsh(gram._moments.double())[0] + 1e-3 * gram._moments.diagonal().mean()
        return gram._moments - lost * torch.eye(len(gram._moments))

    monkeypatch.setattr(Gram, "matrix", property(indefinite))
    result = apply(tiny_model(), SvdLlmConfig(), CompressionContext(calibration=random_windows()))
    assert len(result.notes) == 14
    assert all("damped more than the others" in note for note in result.notes)


def test_inputs_that_are_all_zero_count_as_not_reached() -> None:
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    plain = factorize(weight, 4)
    for other in (factorize(weight, 4, torch.zeros(16, 16)), factorize_scaled(weight, 4, torch.zeros(16))):
        assert torch.equal(other[1] @ other[0], plain[1] @ plain[0])
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data.zero_()  # what down_proj reads is zero
    for method in (apply, apply_scaled):
        config = SvdLlmConfig() if method is apply else AsvdConfig()
        result = method(copy.deepcopy(model), config, CompressionContext(calibration=random_windows()))
        assert result.notes == (f"model.layers.0.mlp.down_proj: {UNREACHED}",)
        assert all(bool(torch.isfinite(parameter).all()) for parameter in result.model.parameters())


def test_linears_of_every_shape_keep_at_most_the_ratio() -> None:
    """Grouped-query attention: keys and values are half as wide as queries."""
    dense = {name: module.weight.numel() for name, module in tiny_model("biases").named_modules() if "_proj" in name}
    model = apply(tiny_model("biases"), SvdLlmConfig(rank_ratio=0.6), CompressionContext(calibration=random_windows()))
    assert model.notes == ()
    for name, elements in dense.items():
        pair = model.model.get_submodule(name)
        kept = pair.down.weight.numel() + pair.up.weight.numel()
        widths = pair.down.in_features + pair.up.out_features
        assert 0.6 * elements - widths < kept <= 0.6 * elements  # one rank more would be too many
        assert (pair.up.bias is not None) == ("q_proj" in name or "k_proj" in name or "v_proj" in name)
        assert pair.down.bias is None
