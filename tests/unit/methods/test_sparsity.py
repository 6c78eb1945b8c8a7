"""Masks: exact counts whatever the scores, against sorting with plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.errors import CompressionError
from agentic_compression.methods import CompressionContext, get_method
from agentic_compression.methods.sparsity import PRUNED_BY_SCORE, input_norms, lowest, two_of_four
from tests.unit.methods.tiny_models import built_model, random_windows


@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5),
    count=st.integers(0, 6),
)
def test_lowest_takes_exactly_that_many_and_the_earlier_of_equals(rows: list[list[int]], count: int) -> None:
    mask = lowest(torch.tensor(rows, dtype=torch.float32), count)
    for row, chosen in zip(rows, mask.tolist(), strict=True):
        expected = sorted(range(6), key=lambda column: (row[column], column))[:count]
        assert [column for column in range(6) if chosen[column]] == sorted(expected)


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=4))
def test_two_of_every_four_are_taken(rows: list[list[int]]) -> None:
    mask = two_of_four(torch.tensor(rows, dtype=torch.float64))
    for row, chosen in zip(rows, mask.tolist(), strict=True):
        for start in (0, 4):
            expected = sorted(range(start, start + 4), key=lambda column: (row[column], column))[:2]
            assert [column for column in range(start, start + 4) if chosen[column]] == sorted(expected)


def test_norms_of_dead_inputs_are_below_all_others_and_alike_without_any_token() -> None:
    norms = input_norms(torch.tensor([4.0, 0.0, 1e-4, 0.0]))
    assert norms.tolist() == pytest.approx([2.0, 1e-8, 1e-2, 1e-8])
    assert input_norms(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", PRUNED_BY_SCORE)
def test_two_four_says_which_width_it_does_not_fit(name: str) -> None:
    method = get_method(name)
    model = built_model("llama", intermediate_size=90)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CompressionError, match=r"divisible by 4, got 90 in model\.layers\.0\.mlp\.down_proj"):
        method.apply(model, method.config(pattern="2:4"), CompressionContext(calibration=random_windows()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # refused before it began


@pytest.mark.parametrize("name", [*PRUNED_BY_SCORE, "asvd", "svd_llm"])
def test_a_model_without_linears_is_refused(name: str) -> None:
    method = get_method(name)
    with pytest.raises(CompressionError, match=f"{name} works on torch.nn.Linear layers, and GPT2LMHeadModel has none"):
        method.apply(built_model("gpt2"), method.config(), CompressionContext(calibration=random_windows()))


@pytest.mark.parametrize("name", [*PRUNED_BY_SCORE, "asvd", "svd_llm"])
def test_stacked_experts_are_named_as_not_covered(name: str) -> None:
    method = get_method(name)
    model = built_model("mixtral", num_local_experts=4)
    experts = {key: value.clone() for key, value in model.named_parameters() if value.dim() == 3}
    result = method.apply(model, method.config(), CompressionContext(calibration=random_windows()))
    assert "stacked tensors, not linears" in result.notes[0]
    kept = dict(result.model.named_parameters())
    assert experts
    assert all(torch.equal(kept[key], value) for key, value in experts.items())


@pytest.mark.parametrize("name", [*PRUNED_BY_SCORE, "asvd", "svd_llm"])
@pytest.mark.parametrize("kind", ["qwen2", "opt", "gemma3_text"])
def test_biases_and_tied_embeddings_are_kept(name: str, kind: str) -> None:
    method = get_method(name)
    model = built_model(kind, tie_word_embeddings=True)
    biases = {
        key.replace(".up.bias", ".bias"): value.clone() for key, value in model.named_parameters() if key[-4:] == "bias"
    }
    embedding = model.get_input_embeddings().weight.clone()
    context = CompressionContext(calibration=random_windows())
    result = method.apply(model, method.config(), context).model
    kept = {key.replace(".up.bias", ".bias"): value for key, value in result.named_parameters()}
    assert all(torch.equal(kept[key], value) for key, value in biases.items())
    assert kind == "gemma3_text" or biases
    assert torch.equal(result.get_input_embeddings().weight, embedding)
    assert result.get_output_embeddings().weight is result.get_input_embeddings().weight


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "asvd", "svd_llm"])
def test_nan_activations_are_refused_and_the_layer_is_named(name: str) -> None:
    method = get_method(name)
    model = built_model("llama")
    model.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    context = CompressionContext(calibration=random_windows())
    with pytest.raises(CompressionError, match=rf"{name} found NaN.*model\.layers\.1\.self_attn\.q_proj"):
        method.apply(model, method.config(), context)


class _Experts(torch.nn.Module):
    """Two experts of which no token ever reaches the second."""

    def __init__(self, mlp: torch.nn.Module) -> None:
        super().__init__()
        self.reached = mlp
        self.never = torch.nn.Linear(48, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.reached(x)
        return result


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "asvd", "svd_llm"])
def test_an_expert_no_token_reached_is_compressed_without_inputs_and_noted(name: str) -> None:
    method = get_method(name)
    model = built_model("llama")
    torch.manual_seed(1)
    expert = _Experts(model.model.layers[1].mlp)
    weight = expert.never.weight.detach().clone()
    model.model.layers[1].mlp = expert
    result = method.apply(model, method.config(), CompressionContext(calibration=random_windows()))
    assert len([note for note in result.notes if "model.layers.1.mlp.never: no calibration token" in note]) == 1
    never = result.model.model.layers[1].mlp.never
    if name in PRUNED_BY_SCORE:
        expected = weight.masked_fill(lowest(weight.abs(), 24), 0)  # by magnitude, row by row, nothing repaired
        assert torch.equal(never.weight, expected)
    else:
        product = (never.up.weight @ never.down.weight).detach()
        singular = torch.linalg.svdvals(weight.double())
        assert float(torch.linalg.norm(product - weight)) == pytest.approx(float(singular[16:].norm()), rel=1e-4)
