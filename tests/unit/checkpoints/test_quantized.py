"""Codes on disk: compressed-tensors' packing against an independent bit unpacker."""

from __future__ import annotations

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.checkpoints.manifest import PackedModule
from agentic_compression.checkpoints.quantized import QuantizedTensor, pack, quantization_config, unpack


def random_weight(rows: int, columns: int, bits: int, group: int, symmetric: bool, seed: int = 0) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    groups = columns // group
    zero_point = torch.randint(low, high, (rows, groups), generator=generator, dtype=torch.int8)
    return QuantizedTensor(
        codes=torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8),
        scale=(torch.rand((rows, groups), generator=generator) * 0.1 + 0.01).to(torch.bfloat16),
        zero_point=None if symmetric else zero_point,
        bits=bits,
    )


def unpack_bits(words: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Element ``i`` of a row is bits ``i * bits`` to ``(i + 1) * bits`` of its little-endian bit stream, offset."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    taken = stream[:, : columns * bits].reshape(words.shape[0], columns, bits).astype(np.int64)
    return taken @ (1 << np.arange(bits)) - (1 << (bits - 1))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 4),
    group=st.sampled_from([1, 7, 32, 43, 64]),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pack_round_trip_and_matches_independent_unpacker(
    rows: int, groups: int, group: int, bits: int, symmetric: bool, seed: int
) -> None:
    weight = random_weight(rows, groups * group, bits, group, symmetric, seed)
    stored = pack(weight)
    back = unpack(stored, bits)
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.scale, weight.scale)
    assert np.array_equal(unpack_bits(stored["weight_packed"].numpy(), bits, groups * group), weight.codes.numpy())
    assert stored["weight_packed"].shape == (rows, -(-groups * group * bits // 32))
    if symmetric:
        assert back.zero_point is None
    else:
        assert weight.zero_point is not None
        assert back.zero_point is not None
        assert torch.equal(back.zero_point, weight.zero_point)
        zeros = unpack_bits(stored["weight_zero_point"].numpy().T.copy(), bits, rows).T
        assert np.array_equal(zeros, weight.zero_point.numpy())


def test_dequantize_matches_formula() -> None:
    weight = random_weight(5, 12, 3, 4, symmetric=False)
    assert weight.zero_point is not None
    for row in range(5):
        for column in range(12):
            scale = float(weight.scale[row, column // 4])
            zero = int(weight.zero_point[row, column // 4])
            expected = scale * (int(weight.codes[row, column]) - zero)
            assert float(weight.dequantize(torch.float64)[row, column]) == np.float32(expected)


def test_quantization_config_is_read_by_the_library_and_names_what_differs() -> None:
    common = PackedModule(bits=4, group_size=32, symmetric=False)
    other = PackedModule(bits=4, group_size=43, symmetric=False)
    config = quantization_config({"a.q": common, "a.k": common, "a.down": other}, ["lm_head"])
    read = QuantizationConfig.model_validate(config)
    assert read.config_groups["group_0"].targets == ["Linear"]
    assert read.config_groups["group_1"].targets == ["a.down"]
    assert read.config_groups["group_1"].weights.group_size == 43
    assert read.ignore == ["lm_head"]
