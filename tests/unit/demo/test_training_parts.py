"""Packing keeps documents apart, and Muon's orthogonalisation does what it says."""

from __future__ import annotations

import torch

from agentic_compression.demo.muon import Muon, orthogonalise
from agentic_compression.demo.outliers import spread_channels
from agentic_compression.demo.packing import IGNORED, answer_flags, pack

BOS, EOS, OPENING, SEPARATOR = 0, 1, [7, 8], 9


def test_answer_flags_cover_answers_up_to_the_separator() -> None:
    document = [BOS, 5, 7, 8, 20, SEPARATOR, 5, 7, 8, 21, 22, EOS]
    flags = answer_flags(document, OPENING, SEPARATOR)
    assert [token for token, flag in zip(document, flags, strict=True) if flag] == [20, 21, 22, EOS]
    assert all(answer_flags([BOS, 5, 6, EOS], OPENING, SEPARATOR))


def test_packed_documents_start_at_position_zero_and_do_not_see_each_other() -> None:
    documents = [[BOS, 5, 6, EOS], [BOS, 5, 7, 8, 20, EOS], [BOS, 4, EOS]]
    rows = pack(documents, 16, OPENING, SEPARATOR)
    assert rows.ids.shape == (1, 16)
    batch = rows.batch([0], prompt_weight=0.5)
    assert batch["position_ids"][0, :13].tolist() == [*range(4), *range(6), *range(3)]
    allowed = batch["attention_mask"][0, 0] == 0
    assert allowed[5, 4]
    assert not allowed[5, 3]
    assert not allowed[4, 5]
    labels = batch["labels"][0].tolist()
    assert labels[:4] == [5, 6, EOS, IGNORED]
    weights = batch["weights"][0].tolist()
    assert weights[:4] == [1.0, 1.0, 1.0, 0.0]
    assert weights[4:9] == [0.5, 0.5, 0.5, 1.0, 1.0]


def test_documents_longer_than_a_row_are_left_out() -> None:
    rows = pack([[BOS, *range(2, 40), EOS], [BOS, 4, EOS]], 16, OPENING, SEPARATOR)
    assert (rows.segments > 0).sum() == 3


def test_orthogonalised_singular_values_are_near_one() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 48, 24, generator=generator)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_muon_lowers_a_quadratic() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(16, 8))
    optimizer = Muon([weight], lr=0.05)
    start = float(weight.detach().square().sum())
    for _ in range(100):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert float(weight.detach().square().sum()) < 0.25 * start


def test_spreading_channels_keeps_the_function_and_makes_outliers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = LlamaForCausalLM(config).double().eval()
    ids = torch.randint(0, 64, (2, 12))
    with torch.inference_mode():
        before = model(input_ids=ids).logits
    reader = model.model.layers[0].self_attn.q_proj
    even = reader.weight.detach().norm(dim=0).log().std()
    spread_channels(model, 0.6, seed=1)
    with torch.inference_mode():
        after = model(input_ids=ids).logits
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert reader.weight.detach().norm(dim=0).log().std() > 3 * even
