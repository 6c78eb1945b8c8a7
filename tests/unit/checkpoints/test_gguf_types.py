"""The mixtures of types against published facts about llama.cpp's own files and its rules."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest

from agentic_compression.checkpoints.ggml import GGML_TYPES, block_width
from agentic_compression.checkpoints.gguf_types import (
    FILE_TYPES,
    ModelShape,
    Role,
    fallback_type,
    needs_importance,
    tensor_type,
)

gguf = pytest.importorskip("gguf", reason="its constants are the reference")

LINEARS: tuple[Role, ...] = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LLAMA_7B = ModelShape(layers=32, queries_per_key=1, tied=False, importance=False)


def types_of(file_type: str, shape: ModelShape, width: int = 4096) -> Counter[str]:
    counted = Counter(tensor_type(file_type, role, i, width, shape) for i in range(shape.layers) for role in LINEARS)
    return counted + Counter(tensor_type(file_type, role, 0, width, shape) for role in ("token_embd", "output"))


def test_file_types_have_the_numbers_of_the_format() -> None:
    for name, (number, usual) in FILE_TYPES.items():
        known = gguf.LlamaFileType(number).name
        assert known in (f"MOSTLY_{name}", f"ALL_{name}")
        assert usual in GGML_TYPES


@pytest.mark.parametrize(
    ("file_type", "expected"),
    [
        # what llama.cpp prints when it loads Llama 2 7B files of these types: 226 weights, and 65 norms in float32
        ("Q4_K_M", {"Q4_K": 193, "Q6_K": 33}),
        ("Q4_K_S", {"Q4_K": 217, "Q5_K": 8, "Q6_K": 1}),
        ("Q5_K_M", {"Q5_K": 193, "Q6_K": 33}),
        ("Q3_K_M", {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1}),
        ("Q3_K_S", {"Q3_K": 225, "Q6_K": 1}),
        ("Q2_K", {"Q2_K": 129, "Q3_K": 96, "Q6_K": 1}),
        ("Q6_K", {"Q6_K": 226}),
        ("Q8_0", {"Q8_0": 226}),
        ("Q4_0", {"Q4_0": 225, "Q6_K": 1}),
        ("F16", {"F16": 226}),
    ],
)
def test_mixture_of_a_7b_model(file_type: str, expected: dict[str, int]) -> None:
    assert dict(types_of(file_type, LLAMA_7B)) == expected


def test_favoured_layers_are_the_first_the_last_and_every_third() -> None:
    favoured = [i for i in range(32) if tensor_type("Q4_K_M", "attn_v", i, 4096, LLAMA_7B) == "Q6_K"]
    assert favoured == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


def test_tied_embeddings_get_the_output_layers_type() -> None:
    tied = ModelShape(layers=6, queries_per_key=2, tied=True, importance=False)
    assert tensor_type("Q4_K_M", "token_embd", 0, 256, tied) == "Q6_K"
    assert tensor_type("IQ2_XXS", "token_embd", 0, 256, tied) == "Q5_K"
    assert tensor_type("Q8_0", "token_embd", 0, 256, tied) == "Q8_0"
    untied = ModelShape(layers=6, queries_per_key=2, tied=False, importance=False)
    assert tensor_type("Q4_K_M", "token_embd", 0, 256, untied) == "Q4_K"
    assert tensor_type("IQ2_XXS", "token_embd", 0, 256, untied) == "Q2_K"


def test_values_shared_by_many_queries_get_more_bits() -> None:
    shared = ModelShape(layers=32, queries_per_key=4, tied=False, importance=False)
    assert tensor_type("Q2_K", "attn_v", 9, 4096, shared) == "Q4_K"
    assert tensor_type("Q2_K", "attn_v", 9, 4096, LLAMA_7B) == "Q3_K"
    large = ModelShape(layers=80, queries_per_key=8, tied=False, importance=False)
    assert tensor_type("Q3_K_S", "attn_v", 40, 8192, large) == "Q5_K"


def test_importance_changes_the_first_down_projections() -> None:
    weighed = ModelShape(layers=32, queries_per_key=1, tied=False, importance=True)
    assert tensor_type("Q4_0", "ffn_down", 0, 4096, weighed) == "Q4_1"
    assert tensor_type("Q4_0", "ffn_down", 0, 4096, LLAMA_7B) == "Q4_0"
    assert tensor_type("IQ4_XS", "ffn_down", 0, 4096, weighed) == "IQ4_XS"
    assert tensor_type("IQ4_XS", "ffn_down", 0, 4096, LLAMA_7B) == "Q5_K"


def test_substitutes_fit_every_width() -> None:
    assert fallback_type("Q4_K", 512) == "Q4_K"
    assert fallback_type("Q4_K", 96) == "Q5_0"
    assert fallback_type("Q6_K", 96) == "Q8_0"
    assert fallback_type("Q2_K", 96) == "Q4_0"
    assert fallback_type("IQ3_S", 96) == "IQ4_NL"
    assert fallback_type("Q4_K", 172) == fallback_type("Q8_0", 172) == "F16"
    for name in GGML_TYPES:
        for width in (32, 43, 64, 172, 256, 344, 4096, 11008):
            assert width % block_width(fallback_type(name, width)) == 0


def test_only_types_with_codebooks_below_three_bits_need_importance() -> None:
    assert {name for name in FILE_TYPES if needs_importance(name)} == {"IQ3_XXS", "IQ2_S", "IQ2_XXS"}


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_every_rule_gives_a_known_type(file_type: str) -> None:
    for layers in (1, 2, 5, 32, 80):
        for shared in (1, 8):
            shape = ModelShape(layers, shared, tied=False, importance=needs_importance(file_type))
            for role in get_args(Role):
                assert {tensor_type(file_type, role, i, 4096, shape) for i in range(layers)} <= set(GGML_TYPES)
