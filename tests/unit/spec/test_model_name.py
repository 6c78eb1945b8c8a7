from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.spec.model_name import size_in_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-2-7b-hf", 7e9),
        ("facebook/opt-125m", 125e6),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5e9),
        ("Qwen/Qwen2-0.5b", 0.5e9),
        ("bigscience/bloom-7b1", 7.1e9),
        ("stabilityai/stablelm-2-1_6b", 1.6e9),
        ("stabilityai/stablelm-3b-4e1t", 3e9),
        ("/models/stories260K", 260e3),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", 1.1e9),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7e9),
        ("01-ai/Yi-34B-200K", 34e9),
        ("x/llama-13b-4bit", 13e9),
        ("Qwen/Qwen3-30B-A3B", 30e9),
        ("meta-llama/Llama-3.1-405B", 405e9),
    ],
)
def test_size_in_name_reads_the_size(name: str, expected: float) -> None:
    found = size_in_name(name)
    assert found is not None
    assert found.parameters == pytest.approx(expected)


@pytest.mark.parametrize(
    "name",
    ["x/model-v0.1", "x/Llama-3", "Qwen/Qwen2.5", "microsoft/Phi-3-mini-128k-instruct", "openai-community/gpt2",
     "google/gemma-3n-E4B", "openchat-3.5-0106", "x/y-4bit", "7b/not-the-folder", "model-0b", ""],
)  # fmt: skip
def test_size_in_name_finds_none_in_versions_context_lengths_and_bit_widths(name: str) -> None:
    assert size_in_name(name) is None


@pytest.mark.parametrize(("name", "published"), [("Mixtral-8x7B-v0.1", 46.70e9), ("Mixtral-8x22B-v0.1", 140.6e9)])
def test_size_in_name_counts_shared_attention_once_in_a_mixture(name: str, published: float) -> None:
    found = size_in_name(name)
    assert found is not None
    assert found.parameters == pytest.approx(published, rel=0.05)


def test_size_in_name_says_how_many_parameters_are_active() -> None:
    found = size_in_name("Qwen/Qwen3-30B-A3B")
    assert found is not None
    assert "3B active" in found.detail


@given(st.text(max_size=60))
def test_size_in_name_never_fails(name: str) -> None:
    found = size_in_name(name)
    assert found is None or found.parameters >= 1
