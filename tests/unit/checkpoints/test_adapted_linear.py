"""Adapters beside a quantized layer: the sum, gradients, storage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from agentic_compression.checkpoints import CheckpointOrigin, load_checkpoint, read_manifest, save_checkpoint
from agentic_compression.checkpoints.adapted_linear import AdaptedLinear
from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.methods.rtn import RtnConfig, quantize
from tests.unit.methods.tiny_models import logits, tiny_model, tiny_tokenizer


def adapted(bits: int = 4, rank: int = 8, dtype: torch.dtype = torch.bfloat16) -> AdaptedLinear:
    torch.manual_seed(0)
    base = PackedLinear(quantize(torch.randn(48, 64), RtnConfig(bits=bits, group_size=32)), torch.randn(48))
    down, up = nn.Linear(64, rank, bias=False, dtype=dtype), nn.Linear(rank, 48, bias=False, dtype=dtype)
    return AdaptedLinear(base, down, up)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_forward_is_that_of_the_summed_weight(bits: int) -> None:
    layer = adapted(bits)
    x = torch.randn(200, 64)  # enough rows for the exact product
    base: PackedLinear = layer.base
    weight = base.quantized().dequantize().double() + layer.up.weight.double() @ layer.down.weight.double()
    expected = x.double() @ weight.T + base.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-4)
    assert layer(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [3, 200])
def test_gradients_reach_factors_and_inputs_through_the_packed_base(rows: int) -> None:
    layer = adapted(dtype=torch.float32)
    x = torch.randn(rows, 64, requires_grad=True)
    factor = torch.randn(rows, 48)
    (layer(x) * factor).sum().backward()
    weight = layer.base.dequantize() + layer.up.weight @ layer.down.weight
    torch.testing.assert_close(x.grad, factor @ weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.up.weight.grad, factor.T @ (x @ layer.down.weight.T), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.down.weight.grad, (factor @ layer.up.weight).T @ x, rtol=1e-4, atol=1e-3)
    assert not any(parameter.grad is not None for parameter in layer.base.parameters())


@pytest.mark.parametrize("kind", ["odd", "biases", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_exact_and_counts_the_factors(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(kind, dtype)
    factor_dtype = torch.float16 if dtype == torch.float16 else torch.bfloat16
    plain_bytes = 0
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and linear is not model.lm_head:
            base = PackedLinear(quantize(linear.weight.detach(), RtnConfig(bits=4, group_size=32)), linear.bias)
            model.set_submodule(name, base)
    plain_bytes = save_checkpoint(model, tiny_tokenizer(), tmp_path / "plain", CheckpointOrigin()).size_bytes
    extra = 0
    for name, base in list(model.named_modules()):
        if isinstance(base, PackedLinear):
            down = nn.Linear(base.in_features, 4, bias=False, dtype=factor_dtype)
            up = nn.Linear(4, base.out_features, bias=False, dtype=factor_dtype)
            nn.init.normal_(up.weight, std=0.05)
            extra += 2 * 4 * (base.in_features + base.out_features)
            model.set_submodule(name, AdaptedLinear(base, down, up))
    reference = save_checkpoint(model, tiny_tokenizer(), tmp_path / "made", CheckpointOrigin())
    assert reference.loads_with == ("acf",)
    assert extra <= reference.size_bytes - plain_bytes < extra + 12_000  # names in header and manifest
    manifest = read_manifest(tmp_path / "made")
    assert manifest is not None
    assert manifest.modules["model.layers.0.mlp.up_proj"].kind == "adapted"
    assert manifest.modules["model.layers.0.mlp.up_proj.base"].kind == "packed"
    loaded = load_checkpoint(tmp_path / "made").model
    assert isinstance(loaded.model.layers[0].mlp.up_proj, AdaptedLinear)
    assert loaded.model.layers[0].mlp.up_proj.down.weight.dtype == factor_dtype
    assert torch.equal(logits(loaded), logits(model))
