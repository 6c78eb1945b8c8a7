"""LoRA merged into dense, sparse and low-rank models; adapters on quantized ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from agentic_compression.checkpoints.adapted_linear import AdaptedLinear
from agentic_compression.checkpoints.low_rank_linear import LowRankLinear
from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext, get_method, lora, qlora
from agentic_compression.methods.linear_layers import target_linears
from agentic_compression.methods.lora import LoraConfig
from agentic_compression.methods.lora_masked import MaskedLora
from agentic_compression.methods.magnitude import MagnitudeConfig
from agentic_compression.methods.magnitude import apply as magnitude
from agentic_compression.methods.qlora import QloraConfig
from agentic_compression.methods.rtn import RtnConfig
from agentic_compression.methods.rtn import apply as rtn
from agentic_compression.methods.training_adapters import adapter_steps
from tests.unit.methods.tiny_models import built_model, logits, tiny_model
from tests.unit.methods.training_windows import training_context


def steps(config: Any, count: int = 30) -> Any:
    return config.model_copy(update={"steps": count})


def distance(model: Any, other: Any) -> float:
    mine, theirs = logits(model).log_softmax(-1), logits(other).log_softmax(-1)
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


def sparse(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    return magnitude(tiny_model(kind, dtype), MagnitudeConfig(sparsity=0.5), CompressionContext()).model


def low_rank(kind: str) -> Any:
    """Every linear as the exact product of two factors, a little disturbed."""
    model = tiny_model(kind)
    for name, linear in target_linears(model):
        u, s, v = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
        down = nn.Linear(linear.in_features, 24, bias=False)
        up = nn.Linear(24, linear.out_features, bias=linear.bias is not None)
        down.weight.data, up.weight.data = v[:24].clone(), (u[:, :24] * s[:24]).clone()
        if linear.bias is not None:
            up.bias.data.copy_(linear.bias.detach())
        model.set_submodule(name, LowRankLinear(down, up))
    return model


def without_second_block() -> Any:
    model = built_model("llama", blocks=4)
    del model.model.layers[1]
    model.config.num_hidden_layers = 3
    for index, block in enumerate(model.model.layers):
        block.self_attn.layer_idx = index
    return model


@pytest.mark.parametrize("kind", ["llama", "biases", "tied", "odd"])
def test_merged_model_is_the_trained_one(kind: str) -> None:
    model = sparse(kind)
    model.model.layers[0].mlp.up_proj.weight.data += 0.01  # one dense linear, PEFT's own layer
    tuner = lora._inject(model, LoraConfig(rank=8), seed=0)
    assert type(model.model.layers[0].mlp.up_proj) is PeftLinear
    assert type(model.model.layers[1].mlp.up_proj) is MaskedLora
    for index, (parameter, _) in enumerate(lora._parameters(model).values()):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    trained = logits(model)
    merged = tuner.merge_and_unload()
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(trained, logits(sparse(kind)), atol=1e-2)
    assert all(type(linear) is nn.Linear for _, linear in target_linears(merged))


def test_masked_forward_is_the_formula() -> None:
    model = sparse("biases")
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    bias = model.model.layers[0].self_attn.q_proj.bias.detach().clone()
    lora._inject(model, LoraConfig(rank=8), seed=0)
    layer = model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    whole = weight.double() + (weight != 0) * (b.detach().double() @ a.detach().double())
    torch.testing.assert_close(layer(x).double(), x.double() @ whole.T + bias.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "biases", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sparse_model_keeps_zeros_types_and_comes_closer(kind: str, dtype: torch.dtype) -> None:
    model = sparse(kind, dtype)
    zeros = {name: linear.weight.detach() == 0 for name, linear in target_linears(model)}
    names = set(model.state_dict())
    before = distance(model, tiny_model(kind, dtype))
    context = training_context(lambda: tiny_model(kind, dtype))
    result = lora.apply(model, steps(LoraConfig(learning_rate=0.003)), context).model
    assert set(result.state_dict()) == names
    assert {parameter.dtype for parameter in result.parameters()} == {dtype}
    for name, linear in target_linears(result):
        assert not linear.weight[zeros[name]].any()
        assert float((linear.weight != 0).sum()) >= 0.99 * float((~zeros[name]).sum())
    assert distance(result, tiny_model(kind, dtype)) < before
    assert not hasattr(result, "peft_config")
    assert not any(parameter.requires_grad for parameter in result.parameters())


@pytest.mark.parametrize("teacher", [True, False])
def test_factors_of_a_low_rank_model_train(teacher: bool) -> None:
    model = low_rank("biases")
    old = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    context = training_context(lambda: tiny_model("biases"))
    result = lora.apply(model, steps(LoraConfig(teacher=teacher), 15), context).model
    changed = {name for name, parameter in result.named_parameters() if not torch.equal(parameter, old[name])}
    assert changed == {name for name in old if name.endswith((".down.weight", ".up.weight"))}
    assert isinstance(result.model.layers[0].mlp.up_proj, LowRankLinear)


def test_lora_is_deterministic_and_resumes(tmp_path: Path) -> None:
    context = training_context(lambda: tiny_model("llama"))
    first = lora.apply(sparse("llama"), steps(LoraConfig(), 12), context).model
    torch.manual_seed(9)
    second = lora.apply(sparse("llama"), steps(LoraConfig(), 12), training_context(tiny_model, tmp_path)).model
    assert torch.equal(logits(first), logits(second))


def test_lora_on_a_quantized_model_says_what_to_use() -> None:
    model = rtn(tiny_model(), RtnConfig(bits=4), CompressionContext()).model
    with pytest.raises(CompressionError, match="use qlora or distill"):
        lora.apply(model, LoraConfig(), training_context(tiny_model))
    with pytest.raises(CompressionError, match="lora needs training text"):
        lora.apply(tiny_model(), LoraConfig(), CompressionContext(load_base=tiny_model))


def test_a_step_of_up_changes_the_weight_by_the_rate() -> None:
    down = torch.randn(16, 300, generator=torch.Generator().manual_seed(0)) * 0.07
    own, other = adapter_steps(down, weight_size=0.02, scaling=2.0)
    assert own == pytest.approx(0.07, rel=0.05)
    signs = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)).sign()
    change = 2.0 * (0.01 * other * signs) @ down
    assert float(change.square().mean().sqrt()) == pytest.approx(0.01 * 0.02, rel=0.05)


@pytest.mark.parametrize("method", ["rtn", "nf4"])
@pytest.mark.parametrize("kind", ["biases", "tied", "odd"])
def test_adapters_train_and_the_base_stays(method: str, kind: str) -> None:
    earlier = get_method(method)
    config = RtnConfig(bits=3, group_size=32) if method == "rtn" else earlier.config()
    model = earlier.apply(tiny_model(kind), config, CompressionContext()).model
    stored = {
        name: {key: tensor.clone() for key, tensor in module.stored_tensors().items()}
        for name, module in model.named_modules()
        if hasattr(module, "stored_tensors")
    }
    before = distance(model, tiny_model(kind))
    context = training_context(lambda: tiny_model(kind))
    result = qlora.apply(model, steps(QloraConfig(learning_rate=0.003)), context)
    adapted = {name: module for name, module in result.model.named_modules() if isinstance(module, AdaptedLinear)}
    assert set(adapted) == set(stored)
    for name, module in adapted.items():
        assert {module.down.weight.dtype, module.up.weight.dtype} == {torch.bfloat16}
        for key, tensor in module.base.stored_tensors().items():
            assert torch.equal(tensor, stored[name][key])
    assert distance(result.model, tiny_model(kind)) < before
    total = sum(2 * 8 * (module.in_features + module.out_features) for module in adapted.values())
    assert f"({total} bytes)" in result.notes[0]


def test_adapters_start_from_what_quantization_lost() -> None:
    model = rtn(tiny_model("llama"), RtnConfig(bits=2, group_size=32), CompressionContext()).model
    before = distance(model, tiny_model("llama"))
    adapted = qlora._attach(model, rank=64)
    assert distance(model, tiny_model("llama")) == before
    assert qlora._started(adapted, qlora.originals_of(model, tiny_model("llama")), 1.0, lambda: 0.5) == []
    assert distance(model, tiny_model("llama")) < 1e-3 * before  # full rank: nothing is lost
    for module in model.modules():
        if isinstance(module, AdaptedLinear) and module.out_features >= 64:
            size = module.down.weight.detach().norm() / module.up.weight.detach().norm()
            assert 0.99 < float(size) < 1.01
    unchanged = rtn(tiny_model("llama"), RtnConfig(bits=2, group_size=32), CompressionContext()).model
    expected = logits(unchanged)
    assert qlora._started(qlora._attach(unchanged, rank=8), {}, 1.0, lambda: 0.5)[0].startswith(
        "adapters start at zero"
    )
    assert torch.equal(logits(unchanged), expected)


def test_residuals_are_those_of_the_blocks_that_were_kept() -> None:
    """After blocks are dropped the names of those behind them are other blocks' names in the uncompressed model."""
    base, model = built_model("llama", blocks=4), without_second_block()
    before = logits(model)
    model = rtn(model, RtnConfig(bits=3, group_size=32), CompressionContext()).model
    originals = qlora.originals_of(model, base)
    assert originals["model.layers.1.mlp.up_proj"] is base.model.layers[2].mlp.up_proj
    lost = float((logits(model) - before).norm())
    assert qlora._started(qlora._attach(model, rank=64), originals, 1.0, lambda: 0.5) == []
    assert float((logits(model) - before).norm()) < 5e-2 * lost  # the kernel multiplies in bfloat16


def test_a_residual_that_is_no_rounding_error_is_not_taken() -> None:
    model = tiny_model()
    model.model.layers[0].mlp.up_proj.weight.data *= 3  # as another stage may scale a weight
    model = rtn(model, RtnConfig(bits=4, group_size=32), CompressionContext()).model
    adapted = qlora._attach(model, rank=8)
    notes = qlora._started(adapted, qlora.originals_of(model, tiny_model()), 1.0, lambda: 0.5)
    assert notes == ["1 of 14 adapters start at zero: no uncompressed weight resembles the quantized one"]
    zero = [name for name, layer in adapted.items() if not layer.up.weight.any()]
    assert zero == ["model.layers.0.mlp.up_proj"]


def test_a_start_that_makes_the_model_worse_is_not_kept() -> None:
    """Scales that a norm took over look like small residuals, and are none."""
    model = built_model("llama")
    for block in model.model.layers:
        scales = 1 + 0.45 * torch.rand(48, generator=torch.Generator().manual_seed(0))
        block.input_layernorm.weight.data /= scales
        for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            linear.weight.data *= scales
    model = rtn(model, RtnConfig(bits=8, group_size=32), CompressionContext()).model
    before = logits(model)
    context = training_context(lambda: built_model("llama"))
    random_state = torch.get_rng_state()
    result = qlora.apply(model, steps(QloraConfig(), 0), context)
    assert any("from what quantization lost, the held-out loss is" in note for note in result.notes)
    assert torch.equal(logits(result.model), before)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_adapters_after_dropped_blocks_leave_no_worse_model() -> None:
    def made(start: str) -> tuple[float, float]:
        model = rtn(without_second_block(), RtnConfig(bits=4, group_size=32), CompressionContext()).model
        context = training_context(lambda: built_model("llama", blocks=4))
        notes = qlora.apply(model, steps(QloraConfig(start=start, learning_rate=0.001), 20), context).notes
        losses = re.search(r"held-out loss (?:a token )?(?:of )?([\d.]+)(?:;| before, ([\d.]+) after)", notes[-1])
        assert losses is not None
        return float(losses[1]), float(losses[2] or losses[1])

    unchanged, _ = made("zero")
    first, last = made("residual")
    assert last <= first <= unchanged


def test_qlora_without_quantized_layers_is_an_error() -> None:
    with pytest.raises(CompressionError, match="found none; put nf4, gptq or rtn before it"):
        qlora.apply(tiny_model(), QloraConfig(), training_context(tiny_model))
