"""GPTQ against the column-by-column update of Optimal Brain Quantization, without blocks and without Cholesky."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext
from agentic_compression.methods.gptq import GptqConfig, apply, quantize_with_gram
from agentic_compression.methods.linear_layers import target_linears
from agentic_compression.methods.rtn import RtnConfig, quantize
from tests.unit.methods.test_layerwise import inputs_by_hook, windows
from tests.unit.methods.test_rtn import bfloat16
from tests.unit.methods.tiny_models import tiny_model


def reference(weight: np.ndarray, gram: np.ndarray, bits: int, group: int, damp: float) -> np.ndarray:
    """Quantize column i, spread its error with row i of the inverse Hessian, remove i from the inverse; float64."""
    w = weight.astype(np.float64).copy()
    columns = w.shape[1]
    hessian = gram + damp * np.mean(np.diag(gram)) * np.eye(columns)
    inverse = np.linalg.inv(hessian)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    restored = np.zeros_like(w)
    for i in range(columns):
        if i % group == 0:
            part = w[:, i : i + group]
            smallest = np.minimum(part.min(axis=1), 0)
            scale = bfloat16((np.maximum(part.max(axis=1), 0) - smallest) / (2**bits - 1))
            zero = np.clip(np.rint(-smallest / scale) + low, low, high)
        codes = np.clip(np.rint(w[:, i] / scale) + zero, low, high)
        restored[:, i] = scale * (codes - zero)
        error = (w[:, i] - restored[:, i]) / inverse[i, i]
        w[:, i + 1 :] -= np.outer(error, inverse[i, i + 1 :])
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return restored


def correlated(columns: int, rows: int = 512, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(rows, columns, generator=generator) @ mixing
    return x.T @ x / rows


def output_error(difference: torch.Tensor, gram: torch.Tensor) -> float:
    return float(torch.einsum("oi,ij,oj->", difference.double(), gram.double(), difference.double()))


@pytest.mark.parametrize(
    ("columns", "group_size", "group"), [(64, 32, 32), (172, 32, 43), (192, 64, 64), (160, -1, 160)]
)
@pytest.mark.parametrize("bits", [3, 4])
def test_result_matches_reference(columns: int, group_size: int, group: int, bits: int) -> None:
    weight = torch.randn(12, columns, generator=torch.Generator().manual_seed(1))
    gram = correlated(columns)
    config = GptqConfig(bits=bits, group_size=group_size, symmetric=False, damp_percent=0.01, least_error=False)
    made = quantize_with_gram(weight, gram, config).dequantize(torch.float64).numpy()
    expected = reference(weight.numpy(), gram.double().numpy(), bits, group, 0.01)
    agree = np.isclose(made, expected, atol=1e-6).mean(axis=1)
    # float32 against float64 may round one weight of a row differently, and the rest of that row then moves with it
    assert (agree == 1).mean() >= 0.75
    ours = output_error(torch.from_numpy(made) - weight.double(), gram)
    theirs = output_error(torch.from_numpy(expected) - weight.double(), gram)
    assert ours == pytest.approx(theirs, rel=0.1)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_output_error_is_below_that_of_rounding(act_order: bool, symmetric: bool) -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(2))
    gram = correlated(128)
    config = GptqConfig(bits=3, group_size=32, symmetric=symmetric, act_order=act_order)
    ours = quantize_with_gram(weight, gram, config).dequantize()
    rounded = quantize(weight, RtnConfig(bits=3, group_size=32, symmetric=symmetric)).dequantize()
    assert output_error(ours - weight, gram) < 0.6 * output_error(rounded - weight, gram)


def test_identity_hessian_gives_plain_rounding() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    ours = quantize_with_gram(weight, torch.eye(64), GptqConfig(group_size=32, least_error=False))
    assert torch.equal(ours.codes, quantize(weight, RtnConfig(group_size=32)).codes)


def test_pruned_weights_stay_zero_and_dead_inputs_are_harmless() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    weight[:, ::4] = 0
    gram = correlated(64)
    gram[5], gram[:, 5] = 0, 0
    made = quantize_with_gram(weight, gram, GptqConfig(bits=4, group_size=32)).dequantize()
    assert bool((made[:, ::4] == 0).all())
    assert bool(torch.isfinite(made).all())


def test_infinite_activations_are_refused() -> None:
    gram = torch.eye(64)
    gram[0, 0] = float("inf")
    with pytest.raises(CompressionError, match="NaN or infinite activations"):
        quantize_with_gram(torch.ones(4, 64), gram, GptqConfig())


def sequential(model: Any, text: list[torch.Tensor], config: GptqConfig) -> dict[str, torch.Tensor]:
    """Block by block: run the whole model so far, quantize the block's linears for what they saw, keep them dense."""
    made = {}
    for index in range(len(model.model.layers)):
        seen = inputs_by_hook(model, text)
        for name, linear in target_linears(model):
            if f"layers.{index}." in name:
                rows = seen[name].double()
                gram = (rows.T @ rows / len(rows)).to(torch.float32)
                made[name] = quantize_with_gram(linear.weight.detach(), gram, config).dequantize()
                linear.weight.data.copy_(made[name])
    return made


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("kind", ["llama", "biases"])
def test_whole_model_is_quantized_sequentially_with_exact_weights(kind: str, act_order: bool) -> None:
    model = tiny_model(kind)
    config = GptqConfig(group_size=32, act_order=act_order)
    expected = sequential(copy.deepcopy(model), windows(12), config)
    biases = {name: linear.bias for name, linear in target_linears(model)}
    result = apply(model, config, CompressionContext(calibration=windows(12)))
    assert result.notes == ()
    packed = {name: layer for name, layer in result.model.named_modules() if isinstance(layer, PackedLinear)}
    assert packed.keys() == expected.keys()
    for name, layer in packed.items():
        # Sums in another order may round a weight differently, and the rest of its row then moves with it.
        rows = torch.isclose(layer.quantized().dequantize(), expected[name], atol=1e-6).all(dim=1)
        assert float(rows.float().mean()) > 0.7, name
        assert (layer.bias is None) == (biases[name] is None)
        assert layer.bias is None or torch.equal(layer.bias, biases[name])


def test_clipped_grids_lower_the_output_error_of_few_bits() -> None:
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(5)) ** 3
    gram = correlated(256)

    def error(**settings: bool) -> float:
        made = quantize_with_gram(weight, gram, GptqConfig(bits=2, group_size=128, **settings))
        return output_error(made.dequantize() - weight, gram)

    assert error(least_error=True) < 0.8 * error(least_error=False)
    assert error(least_error=True, act_order=True) < 0.8 * error(least_error=False, act_order=True)


def test_a_hessian_that_is_not_positive_definite_gets_more_damping() -> None:
    gram = torch.eye(64) * 0.02
    gram[0, 1] = gram[1, 0] = 0.021
    made = quantize_with_gram(torch.randn(4, 64), gram, GptqConfig(bits=8, group_size=32, damp_percent=0.01))
    assert bool(torch.isfinite(made.dequantize()).all())


def test_models_without_linears_are_refused() -> None:
    shape = GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    with pytest.raises(CompressionError, match="GPT2LMHeadModel has none besides"):
        apply(GPT2LMHeadModel(shape).eval(), GptqConfig(), CompressionContext(calibration=windows()))
