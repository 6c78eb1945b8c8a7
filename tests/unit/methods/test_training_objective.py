"""Losses of healing against the formula in float64, and the chunked computation against the plain one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext, training_objective
from agentic_compression.methods.training_batches import Batch, batches_of
from agentic_compression.methods.training_objective import (
    Imitation,
    NextToken,
    distillation_loss,
    load_teacher,
    matching_blocks,
)
from tests.unit.methods.tiny_models import tiny_model


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max())
    return np.asarray(e / e.sum())


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> tuple[float, np.ndarray]:
    """Loss and gradient ``T (softmax(z / T) - softmax(v / T))``, position by position (Hinton et al. 2015, eq. 2)."""
    total, gradient = 0.0, np.zeros_like(student)
    for row in range(student.shape[0]):
        q, p = softmax(student[row] / temperature), softmax(teacher[row] / temperature)
        total += temperature**2 * float((p * (np.log(p) - np.log(q))).sum())
        gradient[row] = temperature * (q - p)
    return total, gradient


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_distillation_loss_and_gradient_are_those_of_the_paper(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(5, 37)) * 4, rng.normal(size=(5, 37)) * 4
    z = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    loss = distillation_loss(z, torch.tensor(teacher, dtype=torch.float32), temperature)
    loss.backward()
    expected, gradient = reference(student, teacher, temperature)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(z.grad.numpy(), gradient, atol=2e-6)
    assert float(distillation_loss(z.detach(), z.detach(), temperature)) == pytest.approx(0, abs=1e-5)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    windows = [torch.randint(2, 250, (length,), generator=generator) for length in (23, 17, 9)]
    return batches_of(windows, 1000)[0]


def plain_loss(student: torch.nn.Module, teacher: torch.nn.Module | None, hidden_weight: float) -> torch.Tensor:
    """The same objective from whole logits, one window after the other, nothing padded or chunked."""
    total = torch.zeros(())
    data = batch()
    for ids, predicts in zip(data.ids, data.predicts, strict=True):
        length = int(predicts.sum()) + 1
        mine = student(input_ids=ids[None, :length], output_hidden_states=True)
        if teacher is None:
            total = total + torch.nn.functional.cross_entropy(mine.logits[0, :-1], ids[1:length], reduction="sum")
            continue
        with torch.no_grad():
            theirs = teacher(input_ids=ids[None, :length], output_hidden_states=True)
        total = total + distillation_loss(mine.logits[0, :-1], theirs.logits[0, :-1], 2.0)
    return total


def gemma(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "final_logit_softcapping": 0.5}
    model: torch.nn.Module = Gemma2ForCausalLM(Gemma2Config(**shape, **heads)).eval()
    return model


@pytest.mark.parametrize("kind", ["llama", "tied", "biases", "gemma"])
@pytest.mark.parametrize("teaches", [True, False])
def test_chunked_padded_gradient_is_the_plain_one(kind: str, teaches: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_objective, "_CHUNK_BYTES", 4 * 258 * 16)
    student = gemma(0) if kind == "gemma" else tiny_model(kind)
    teacher = gemma(1) if kind == "gemma" else tiny_model(kind, seed=1)
    sample = batch().ids[:1, :9]
    objective = Imitation(student, teacher, sample, 2.0) if teaches else NextToken(student, sample)
    if kind == "gemma":  # its logits are soft-capped after the output embedding
        assert isinstance(objective._student.head, torch.nn.Identity)
    expected = plain_loss(student, teacher if teaches else None, 0.0)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad(set_to_none=True)
    assert objective.add_gradients(batch(), 0.5) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert len(wanted) > 10
    for name, parameter in student.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, 0.5 * wanted[name], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        assert objective.measure(batch()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_hidden_part_is_the_relative_squared_distance_over_real_positions() -> None:
    student, teacher = tiny_model("llama"), tiny_model("llama", seed=1)
    data = batch()
    plain = Imitation(student, teacher, data.ids[:1, :9]).add_gradients(data, 1.0)
    student.zero_grad(set_to_none=True)
    with_hidden = Imitation(student, teacher, data.ids[:1, :9], hidden_weight=0.5).add_gradients(data, 1.0)
    with torch.no_grad():
        mine = student(input_ids=data.ids, output_hidden_states=True).hidden_states[1:]
        theirs = teacher(input_ids=data.ids, output_hidden_states=True).hidden_states[1:]
    expected = 0.0
    for a, b in zip(mine, theirs, strict=True):
        target = b[data.predicts].double()
        difference = a[data.predicts].double() - target
        expected += float(difference.square().sum() / target.square().mean() / 64) / len(mine)
    assert with_hidden - plain == pytest.approx(0.5 * expected, rel=1e-4)


def test_kept_blocks_are_found_by_their_norms() -> None:
    teacher = tiny_model("llama")
    teacher.config.num_hidden_layers = 6
    blocks = [tiny_model("llama", seed=seed).model.layers[0] for seed in range(6)]
    for index, block in enumerate(blocks):
        for name in ("input_layernorm", "post_attention_layernorm"):
            block.get_submodule(name).weight.data += 0.1 * torch.randn(
                64, generator=torch.Generator().manual_seed(index)
            )
    teacher.model.layers = torch.nn.ModuleList(blocks)
    for count in (1, 3, 5):
        for kept in itertools.combinations(range(6), count):
            student = tiny_model("llama")
            student.config.num_hidden_layers = count
            student.model.layers = torch.nn.ModuleList([blocks[index] for index in kept])
            wanted = [after - 1 for after in (*kept[1:], 6)]
            assert matching_blocks(student, teacher) == list(enumerate(wanted))
    assert matching_blocks(teacher, teacher) == [(index, index) for index in range(6)]


def test_a_teacher_must_be_there_and_speak_the_same_tokens() -> None:
    with pytest.raises(CompressionError, match="distill needs the uncompressed model"):
        load_teacher(tiny_model(), "distill", CompressionContext())
    other = tiny_model()
    other.config.vocab_size = 300
    with pytest.raises(CompressionError, match="same vocabulary, got 300 tokens for 258"):
        load_teacher(tiny_model(), "distill", CompressionContext(load_base=lambda: other))
