"""Distillation: what trains, what must stay as it is, and the fake-quantized layer against the packed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.checkpoints import load_checkpoint, read_manifest
from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext, CompressionRequest, compress, distill
from agentic_compression.methods.distill import DistillConfig
from agentic_compression.methods.distill_fake_quantized import FakeQuantizedLinear
from agentic_compression.methods.distill_samples import sample_windows
from agentic_compression.methods.distill_student import trainable_student
from agentic_compression.methods.magnitude import MagnitudeConfig
from agentic_compression.methods.magnitude import apply as magnitude
from agentic_compression.methods.rtn import RtnConfig, quantize
from agentic_compression.methods.rtn import apply as rtn
from agentic_compression.records import Strategy
from tests.unit.methods.tiny_models import logits, save_tiny, tiny_model, write_text
from tests.unit.methods.training_windows import training_context

CONFIG = DistillConfig(learning_rate=0.003, generated=0.0).model_copy(update={"steps": 30})


def distance(model: Any, other: Any) -> float:
    """Mean KL divergence of the next token's distribution from that of ``other``."""
    mine, theirs = logits(model).log_softmax(-1), logits(other).log_softmax(-1)
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


def packed(bits: int, group_size: int, symmetric: bool, columns: int = 64, seed: int = 0) -> tuple[PackedLinear, Any]:
    weight = torch.randn(24, columns, generator=torch.Generator().manual_seed(seed)) * 0.1
    bias = torch.randn(24, generator=torch.Generator().manual_seed(seed + 1))
    config = RtnConfig.model_construct(bits=bits, group_size=group_size, symmetric=symmetric)
    return PackedLinear(quantize(weight, config), bias), weight


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([32, 43, -1]),
    symmetric=st.booleans(),
    seed=st.integers(0, 50),
    near=st.booleans(),
)
def test_fake_quantized_layer_starts_as_the_packed_one(
    bits: int, group_size: int, symmetric: bool, seed: int, near: bool
) -> None:
    layer, weight = packed(bits, group_size, symmetric, 172 if group_size == 43 else 64, seed)
    other = torch.randn_like(weight)
    fake = FakeQuantizedLinear(layer, weight if near else other)
    assert torch.equal(fake.weight(), layer.quantized().dequantize())
    x = torch.randn(200, layer.in_features, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(fake(x), layer(x), rtol=1e-5, atol=1e-5)
    again = fake.packed().quantized()
    before = layer.quantized()
    assert torch.equal(again.codes, before.codes)
    assert torch.equal(again.scale, before.scale)
    assert (again.zero_point is None) == symmetric
    assert again.zero_point is None or torch.equal(again.zero_point, before.zero_point)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_are_those_of_the_straight_through_estimator(symmetric: bool) -> None:
    layer, _ = packed(3, 32, symmetric)
    fake = FakeQuantizedLinear(layer)
    with torch.no_grad():  # some codes out of range, some scales not where they began
        fake.latent += 0.15 * torch.randn(24, 64, generator=torch.Generator().manual_seed(3))
        fake.log_scale += 0.05 * torch.randn(24, 2, generator=torch.Generator().manual_seed(4))
    factor = torch.randn(24, 64, generator=torch.Generator().manual_seed(5))
    (fake.weight() * factor).sum().backward()

    def through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return value + (rounded - value).detach()

    latent = fake.latent.detach().double().requires_grad_()
    log_scale = fake.log_scale.detach().double().requires_grad_()
    zero = torch.zeros(24, 2, dtype=torch.float64) if fake.zero is None else fake.zero.detach().double()
    zero.requires_grad_()
    scale = through(log_scale.exp(), log_scale.detach().float().exp().to(torch.bfloat16).double())[..., None]
    ratio = latent.view(24, 2, 32) / scale
    z = through(zero, zero.round())[..., None]
    codes = (through(ratio, ratio.round()) + z).clamp(-4, 3)
    wanted = (scale * (codes - z)).view(24, 64)
    assert bool(((codes == -4) | (codes == 3)).any())
    torch.testing.assert_close(fake.weight().double(), wanted, rtol=1e-5, atol=1e-6)
    (wanted * factor.double()).sum().backward()
    torch.testing.assert_close(fake.latent.grad.double(), latent.grad, rtol=1e-5, atol=1e-5)
    # ``exp`` differentiated at the rounded scale: half a bfloat16 step of difference at most
    torch.testing.assert_close(fake.log_scale.grad.double(), log_scale.grad, rtol=5e-3, atol=1e-4)
    if fake.zero is not None:
        torch.testing.assert_close(fake.zero.grad.double(), zero.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "biases", "tied", "odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sparse_student_keeps_its_zeros_and_comes_closer(kind: str, dtype: torch.dtype) -> None:
    teacher = tiny_model(kind, dtype)
    context = training_context(lambda: tiny_model(kind, dtype))
    model = magnitude(tiny_model(kind, dtype), MagnitudeConfig(sparsity=0.5), context).model
    zeros = {name: p.detach() == 0 for name, p in model.named_parameters() if name.endswith("proj.weight")}
    before = distance(model, teacher)
    embedding = model.lm_head.weight.detach().clone()
    result = distill.apply(model, CONFIG, context)
    for name, parameter in result.model.named_parameters():
        assert parameter.dtype == dtype
        assert not parameter.requires_grad
        if name in zeros:
            assert int(zeros[name].sum()) >= parameter.numel() // 2
            assert not parameter[zeros[name]].any()
            assert parameter[~zeros[name]].any()
    assert torch.equal(model.lm_head.weight, embedding)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (kind == "tied")
    assert distance(result.model, teacher) < before
    assert "held-out loss" in result.notes[-1]


@pytest.mark.parametrize("kind", ["biases", "tied", "odd"])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False), (8, False)])
def test_a_quantized_student_keeps_its_format(kind: str, bits: int, symmetric: bool) -> None:
    context = training_context(lambda: tiny_model(kind, torch.bfloat16))
    settings = RtnConfig(bits=bits, group_size=32, symmetric=symmetric)
    model = rtn(tiny_model(kind, torch.bfloat16), settings, context).model
    before = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    old = {name: module.quantized() for name, module in before.items()}
    config = CONFIG.model_copy(update={"steps": 8})
    after = distill.apply(model, config, context).model
    assert not any(isinstance(module, FakeQuantizedLinear) for module in after.modules())
    changed = 0
    for name, kept in old.items():
        layer = after.get_submodule(name)
        assert isinstance(layer, PackedLinear)
        new = layer.quantized()
        assert layer.representation == before[name].representation
        assert {key: (t.shape, t.dtype) for key, t in layer.stored_tensors().items()} == {
            key: (t.shape, t.dtype) for key, t in before[name].stored_tensors().items()
        }
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        assert int(new.codes.min()) >= low
        assert int(new.codes.max()) <= high
        if new.zero_point is not None:
            assert int(new.zero_point.min()) >= low
            assert int(new.zero_point.max()) <= high
        assert bool((new.scale > 0).all())
        assert torch.equal(new.scale.to(torch.bfloat16).to(new.scale.dtype), new.scale)
        changed += not torch.equal(new.codes, kept.codes) or not torch.equal(new.scale, kept.scale)
        assert layer.bias is None or layer.bias.dtype == torch.bfloat16
    assert changed > 0 or bits == 8  # where hardly anything was lost, nothing may be better


def test_the_trained_student_is_the_one_that_is_packed() -> None:
    teacher = tiny_model("biases")
    model = rtn(tiny_model("biases"), RtnConfig(bits=2, group_size=32), CompressionContext()).model
    ids = torch.randint(2, 250, (8, 40), generator=torch.Generator().manual_seed(1))
    with trainable_student(model, teacher, embeddings=False) as parameters, torch.no_grad():
        for parameter, _ in parameters.values():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.add_(0.02 * noise)
        trained = model(input_ids=ids).logits
    with torch.no_grad():  # 320 rows: the packed layer multiplies in float32 too
        torch.testing.assert_close(model(input_ids=ids).logits, trained, rtol=1e-4, atol=1e-4)


def test_two_bits_come_closer_and_killed_runs_go_on(tmp_path: Path) -> None:
    teacher = tiny_model("llama")
    base = lambda: tiny_model("llama")  # noqa: E731
    config = DistillConfig(generated=0.5).model_copy(update={"steps": 15})

    def quantized() -> Any:
        return rtn(base(), RtnConfig(bits=2, group_size=32), CompressionContext()).model

    before = distance(quantized(), teacher)
    whole = distill.apply(quantized(), config, training_context(base)).model
    assert distance(whole, teacher) < before
    stored = distill.apply(quantized(), config, training_context(base, tmp_path)).model
    assert torch.equal(logits(stored), logits(whole))
    assert [path.name for path in tmp_path.glob("samples-*")]
    again = distill.apply(quantized(), config, training_context(base, tmp_path)).model
    assert torch.equal(logits(again), logits(whole))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_steps_on_a_grid_are_shares_of_its_levels(bits: int) -> None:
    model = rtn(tiny_model("biases"), RtnConfig(bits=bits, group_size=32), CompressionContext()).model
    name = "model.layers.0.mlp.up_proj"
    scale = float(model.get_submodule(name).quantized().scale.float().mean())
    with trainable_student(model, tiny_model("biases"), embeddings=False) as parameters:
        weight = model.get_submodule(name).latent.detach()
        size = float(weight[weight != 0].square().mean().sqrt())
        assert parameters[f"{name}.latent"][1] == pytest.approx(min(size, scale), rel=1e-3)
        assert parameters[f"{name}.log_scale"][1] == 4 / 2**bits
        assert parameters[f"{name}.zero"][1] == 1
        assert parameters["model.norm.weight"][1] == pytest.approx(1)
        assert "lm_head.weight" not in parameters
        assert "model.embed_tokens.weight" not in parameters


def test_embeddings_train_when_asked_and_stay_tied() -> None:
    context = training_context(lambda: tiny_model("tied"))
    model = magnitude(tiny_model("tied"), MagnitudeConfig(sparsity=0.5), context).model
    distill.apply(model, CONFIG.model_copy(update={"embeddings": True, "steps": 10}), context)
    assert not torch.equal(model.lm_head.weight, tiny_model("tied").lm_head.weight)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_samples_follow_the_teacher_and_end_at_its_end_token() -> None:
    teacher = tiny_model("llama")
    with torch.no_grad():
        teacher.lm_head.weight[1] += teacher.lm_head.weight.abs().mean()
    windows = sample_windows(teacher, 70, 40, CompressionContext(seed=3))
    assert 0 < len(windows) <= 70
    for window in windows:
        assert int(window[0, 0]) == 0
        assert 8 <= window.shape[1] <= 40
        assert not bool((window[0, :-1] == 1).any())
    again = sample_windows(teacher, 70, 40, CompressionContext(seed=3))
    assert all(torch.equal(a, b) for a, b in zip(windows, again, strict=True))
    teacher.config.bos_token_id = None
    with pytest.raises(CompressionError, match="no beginning-of-sequence token"):
        sample_windows(teacher, 4, 40, CompressionContext())


def test_without_text_the_teacher_writes_all_of_it_or_it_is_an_error() -> None:
    context = CompressionContext(load_base=tiny_model)
    model = magnitude(tiny_model(), MagnitudeConfig(sparsity=0.5), context).model
    with pytest.raises(CompressionError, match="needs training text"):
        distill.apply(model, CONFIG, context)
    with pytest.raises(CompressionError, match="uncompressed model"):
        distill.apply(model, CONFIG, CompressionContext())


def test_hidden_weight_is_left_out_where_widths_differ_and_said_so() -> None:
    class Text:
        hidden_size = 32

    narrow, teacher = tiny_model(), tiny_model()
    narrow.config.get_text_config = Text  # type: ignore[method-assign]
    weight, notes = distill._hidden_weight(narrow, teacher, DistillConfig(hidden_weight=1.0))
    assert weight == 0
    assert "the width is 32, that of the uncompressed model 64" in notes[0]


@pytest.mark.parametrize("healing", ["distill:steps=100,generated=0", "qlora:steps=100,rank=4"])
def test_a_strategy_that_heals_is_stored_like_one_that_does_not(healing: str, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "odd")
    write_text(tmp_path / "text.jsonl", documents=12)
    sizes = {}
    for strategy in ("rtn:bits=3,group_size=32", f"rtn:bits=3,group_size=32 | {healing}"):
        outcome = compress(
            CompressionRequest(
                model_path=str(base),
                base_digest="base",
                strategy=Strategy.parse(strategy),
                calibration_path=str(tmp_path / "text.jsonl"),
                calibration_digest="text",
                calibration_tokens=40,
                checkpoints_root=str(tmp_path / "checkpoints"),
            )
        )
        assert outcome.checkpoint is not None
        folder = Path(outcome.checkpoint.path)
        manifest = read_manifest(folder)
        assert manifest is not None
        weights = next(folder.glob("*model.safetensors")).stat().st_size
        sizes[strategy] = (weights, {module.kind for module in manifest.modules.values()})
        assert torch.isfinite(logits(load_checkpoint(folder).model)).all()
    plain, healed = sizes.values()
    if healing.startswith("distill"):
        assert healed == plain
        assert "held-out loss" in manifest.stages[1].notes[-1]
    else:
        assert healed[0] > plain[0]
        assert healed[1] == {"packed", "adapted"}
