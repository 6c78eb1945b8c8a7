"""Bits of GGUF types by arithmetic, beside what llama.cpp states and beside a file written here."""

from __future__ import annotations

import pytest

from agentic_compression.checkpoints.gguf_bits import USUAL_SHAPE, DenseShape, mixture_bits
from agentic_compression.checkpoints.gguf_types import FILE_TYPES

STATED = {
    "Q2_K": 3.1593,
    "Q3_K_S": 3.6429,
    "Q4_K_S": 4.6672,
    "Q4_K_M": 4.8944,
    "Q5_K_M": 5.7036,
    "Q6_K": 6.5633,
    "Q8_0": 8.5008,
}
"""Llama 3.1 with 8 billion parameters (llama.cpp, tools/quantize/README.md); the files' headers are counted in."""


@pytest.mark.parametrize("name", sorted(STATED))
def test_bits_are_those_that_llama_cpp_states(name: str) -> None:
    assert mixture_bits(name).overall == pytest.approx(STATED[name], rel=5e-4)


def test_rows_that_do_not_fit_a_types_blocks_take_the_substitutes_bits() -> None:
    narrow = DenseShape(layers=4, hidden=64, queries=64, keys=32, mlp=172, vocabulary=512, tied=True)
    bits = mixture_bits("Q2_K", narrow)
    assert bits.attention == 4.5  # Q4_0 in place of Q2_K and Q3_K
    assert bits.embeddings == 8.5  # Q8_0 in place of Q6_K
    assert 4.5 < bits.mlp < 16  # rows of 172 fit no block at all and stay 16 bits wide


@pytest.mark.parametrize("name", sorted(FILE_TYPES))
def test_every_file_type_has_bits_and_parts_average_to_the_whole(name: str) -> None:
    bits = mixture_bits(name)
    parts = sorted((bits.attention, bits.mlp, bits.embeddings))
    assert 2 < parts[0] <= bits.overall <= parts[-1] <= 32
    assert bits == mixture_bits(name, USUAL_SHAPE)
