"""A checkpoint's codes in llama.cpp's blocks: read back by gguf-py, and byte for byte as ggml lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agentic_compression.checkpoints import gguf_grid
from agentic_compression.checkpoints.ggml import quantize_rows
from agentic_compression.checkpoints.gguf_architecture import row_order
from agentic_compression.checkpoints.gguf_file import weight_bytes, write_gguf
from agentic_compression.checkpoints.gguf_grid import GRID_TYPES, grid_rows, grid_type, own_codes, take_own_grid
from agentic_compression.checkpoints.gguf_plan import GgufPlan
from agentic_compression.checkpoints.packed_linear import PackedLinear
from agentic_compression.checkpoints.quantized import QuantizedTensor
from agentic_compression.errors import CompressionError
from tests.unit.export.checkpoints import applied
from tests.unit.methods.tiny_models import tiny_model, tiny_tokenizer

gguf = pytest.importorskip("gguf", reason="it reads the blocks back")
pytest.importorskip("xllamacpp", reason="ggml's own blocks are compared with")

ROUNDING = 2.0**-11
EXTREME_BITS = {2: "Q4_0", 3: "Q4_0", 4: "Q4_0", 5: "Q5_0", 6: "Q8_0", 7: "Q8_0", 8: "Q8_0"}


def read_back(blocks: NDArray[np.uint8], type_name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = gguf.dequantize(blocks, gguf.GGMLQuantizationType[type_name]).astype(np.float64)
    return values


def exact(weight: QuantizedTensor) -> NDArray[np.float64]:
    """The weight in float64, by its definition."""
    groups = weight.scale.shape[1]
    codes = weight.codes.double().view(len(weight.codes), groups, -1)
    zero = 0.0 if weight.zero_point is None else weight.zero_point.double()[..., None]
    values: NDArray[np.float64] = (weight.scale.double()[..., None] * (codes - zero)).view(len(codes), -1).numpy()
    return values


def made(bits: int, rows: int = 4, groups: int = 2, group_size: int = 64, zeros: bool = False, **others: Any) -> Any:
    """A random weight that has the least and the largest code its bits allow."""
    random = torch.Generator().manual_seed(others.get("seed", 0))
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    codes = torch.randint(low, high + 1, (rows, groups * group_size), generator=random, dtype=torch.int8)
    codes[0, 0], codes[0, 1] = low, high
    span = others.get("spread", 1.0)
    scale = 0.01 * torch.exp(span * torch.randn(rows, groups, generator=random))
    points = torch.randint(low, high + 1, (rows, groups), generator=random, dtype=torch.int8)
    return QuantizedTensor(codes, scale.to(others.get("dtype", torch.bfloat16)), points if zeros else None, bits)


@settings(max_examples=150, deadline=None)
@given(
    bits=st.integers(1, 8),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 4), st.sampled_from([32, 64, 96, 128, 256])),
    zeros=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    seed=st.integers(0, 2**16),
    at_once=st.sampled_from([1, 500, 1 << 20]),
)
def test_blocks_read_back_as_the_weight(
    bits: int, shape: tuple[int, int, int], zeros: bool, dtype: torch.dtype, seed: int, at_once: int
) -> None:
    rows, groups, group_size = shape
    weight = made(bits, rows, groups, group_size, zeros, dtype=dtype, seed=seed)
    order = np.random.default_rng(seed).permutation(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_grid, "_WEIGHTS_AT_ONCE", at_once)
        points = torch.zeros(rows, groups) if weight.zero_point is None else weight.zero_point
        distance = weight.codes.view(rows, groups, -1).int() - points.int()[..., None]
        if distance.min() < -128 or distance.max() > 127:
            with pytest.raises(CompressionError, match=f"codes of {bits} bits lie further than a signed byte from"):
                grid_type(weight)
            return
        type_name = grid_type(weight)
        values = read_back(grid_rows(weight, type_name, order), type_name)
    if not zeros:
        assert type_name == EXTREME_BITS.get(bits, "Q4_0")
    expected = exact(weight)[order]
    if type_name not in {"Q4_1", "Q5_1"} and dtype != torch.float32:
        assert np.array_equal(values, expected)
        return
    middle = {"Q4_1": 8, "Q5_1": 16}.get(type_name, 0)
    scale = weight.scale.double().numpy()
    steps = np.abs(distance.numpy()) * np.maximum(scale, np.median(scale))[..., None]
    least = (scale * np.abs(middle + points.double().numpy()))[..., None] if middle else 0.0
    allowed = (ROUNDING * (steps + least)).reshape(rows, -1)
    assert (np.abs(values - expected) <= 1.01 * allowed[order] + 1e-9).all()


@pytest.mark.parametrize(
    ("bits", "zeros", "expected"),
    [(3, True, "Q4_0"), (4, True, "Q4_1"), (5, True, "Q5_1"), (6, True, "Q8_0"), (7, True, "Q8_0"), (8, False, "Q8_0")],
)
def test_the_smallest_block_that_holds_the_codes_is_taken(bits: int, zeros: bool, expected: str) -> None:
    weight = made(bits, zeros=zeros)
    assert grid_type(weight) == expected
    if zeros and bits > 3:  # around one and the same zero point few bits need no least value
        codes = weight.codes.clamp(-2, 3)
        assert grid_type(QuantizedTensor(codes, weight.scale, torch.full((4, 2), 1, dtype=torch.int8), bits)) == "Q4_0"


@pytest.mark.parametrize(("bits", "inside", "outside"), [(4, "Q4_0", "Q4_1"), (5, "Q5_0", "Q5_1"), (8, "Q8_0", None)])
def test_blocks_have_one_number_less_above_zero_than_below(bits: int, inside: str, outside: str | None) -> None:
    high = 2 ** (bits - 1) - 1
    codes = torch.zeros(1, 32, dtype=torch.int8)
    codes[0, :2] = torch.tensor([high, -high])
    scale = torch.ones(1, 1)

    def chosen(zero_point: int) -> str:
        return grid_type(QuantizedTensor(codes, scale, torch.full((1, 1), zero_point, dtype=torch.int8), bits))

    assert chosen(1) == inside  # to one below the least number of a symmetric grid
    if outside is None:
        with pytest.raises(CompressionError, match="codes of 8 bits lie further"):
            chosen(-1)
    else:
        assert chosen(-1) == outside


@pytest.mark.parametrize("type_name", GRID_TYPES)
def test_bytes_are_those_of_ggml(type_name: str) -> None:
    """Where every block has both extremes and a scale of float16, ggml's quantizer finds the same grid."""
    middle = {"Q4_0": 8, "Q4_1": 8, "Q5_0": 16, "Q5_1": 16, "Q8_0": 127}[type_name]
    random = torch.Generator().manual_seed(3)
    codes = torch.randint(1 - middle, middle, (6, 192), generator=random, dtype=torch.int8)
    blocks = codes.view(6, -1, 32)
    blocks[..., 5] = -middle if type_name != "Q8_0" else middle
    blocks[..., 30] = middle - 1
    scale = 2.0 ** torch.randint(-9, -4, (6, 6), generator=random)
    points = torch.randint(-4, 5, (6, 6), generator=random, dtype=torch.int8) if type_name in {"Q4_1", "Q5_1"} else None
    if points is not None:
        points[0, 0] = 7 if middle == 8 else 15
    weight = QuantizedTensor(codes, scale, points, {8: 4, 16: 5, 127: 8}[middle])
    assert grid_type(weight) == type_name
    order = row_order(6, None)[::-1].copy()
    theirs = quantize_rows(torch.from_numpy(exact(weight)), type_name, order)
    assert np.array_equal(grid_rows(weight, type_name, order), theirs)


@pytest.mark.parametrize("scale", [1e5, float("inf"), float("nan"), 6e4])
def test_scales_beyond_float16_are_refused(scale: float) -> None:
    weight = made(4, zeros=True, dtype=torch.float32)
    points = weight.zero_point.clone()
    points[1, 1] = 0
    weight.scale[1, 1] = scale
    weight = QuantizedTensor(weight.codes, weight.scale, points, 4)  # the least value of 6e4 is -48e4
    with pytest.raises(CompressionError, match="float16 does not hold their scales"):
        grid_type(weight)
    with pytest.raises(CompressionError, match="Q4_1 holds 16 numbers and float16 scales"):
        grid_rows(weight, "Q4_1", row_order(4, None))


def test_scales_lost_to_float16_are_refused_unless_they_are_next_to_nothing_in_their_layer() -> None:
    weight = made(8, spread=0.1, dtype=torch.float32)
    weight.scale[2] = 3e-8  # between two numbers of float16
    assert grid_type(weight) == "Q8_0"
    values = read_back(grid_rows(weight, "Q8_0", row_order(4, None)), "Q8_0")
    largest = 128 * ROUNDING * float(weight.scale.median())
    assert np.abs(values - exact(weight)).max() <= largest
    small = QuantizedTensor(weight.codes, weight.scale * 1e-6, None, 8)
    with pytest.raises(CompressionError, match="float16 does not hold their scales"):
        grid_type(small)


@pytest.mark.parametrize("scale", [1e30, 1e-38, float("inf")])
@pytest.mark.parametrize("bits", [4, 5, 7])
def test_groups_of_zeros_may_have_any_scale(bits: int, scale: float) -> None:
    weight = made(bits, zeros=True, dtype=torch.float32)
    weight.codes.view(4, 2, 64)[2, 1] = weight.zero_point[2, 1]
    weight.scale[2, 1] = scale
    type_name = grid_type(weight)
    values = read_back(grid_rows(weight, type_name, row_order(4, None)), type_name)
    assert (values[2, 64:] == 0).all()
    assert np.isfinite(values).all()
    assert (values[3] != 0).any()


@pytest.mark.parametrize("group_size", [16, 48, 172])
def test_groups_that_are_no_blocks_are_refused(group_size: int) -> None:
    with pytest.raises(CompressionError, match=f"groups of {group_size} weights are no whole blocks of 32"):
        grid_type(made(4, group_size=group_size))


def test_a_type_that_does_not_hold_the_codes_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"Q4_0 holds 16 numbers .* got -8 to 23"):
        grid_rows(made(5), "Q4_0", row_order(4, None))


def test_parts_of_other_layers_and_what_has_no_block_stay_in_the_model() -> None:
    model = applied(tiny_model("odd"), "rtn:bits=4,group_size=32")
    inner = model.model.layers[0].mlp
    inner.up_proj = torch.nn.Sequential(inner.up_proj)  # not a layer of ours: it hides nothing
    low = torch.nn.Module()
    own: Any = type("Pair", (torch.nn.Module,), {"stored_kind": "low_rank"})()
    own.down = PackedLinear(made(4))
    model.pair, model.empty = own, low
    before = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    found = take_own_grid(model)
    refused = {name for name in before if name.endswith("down_proj")}
    assert set(found.refused) == refused
    assert set(found.layers) == set(before) - refused - {"pair.down"}
    assert all(found.layers[name] is before[name] for name in found.layers)
    left = {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    assert left == refused | {"pair.down"}


@pytest.mark.parametrize(("kind", "strategy"), [("llama", "rtn:bits=4,group_size=32"), ("biases", "int8")])
def test_a_written_file_holds_the_layers_own_weights(kind: str, strategy: str, tmp_path: Path) -> None:
    """Rows of queries and keys, which llama.cpp has in another order, among them."""
    model = applied(tiny_model(kind), strategy)
    weights = {name: own_codes(module) for name, module in model.named_modules() if own_codes(module) is not None}
    biases = {name: module.bias for name, module in model.named_modules() if name in weights}
    found = take_own_grid(model)
    assert set(found.types) == set(weights)
    others = dict.fromkeys(("model.embed_tokens", "lm_head"), "Q8_0")
    plan = GgufPlan(next(iter(found.types.values())), {**others, **found.types}, layers=found.layers)
    write_gguf(model, tiny_tokenizer(), tmp_path / "m.gguf", plan)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    read = {tensor.name: tensor for tensor in reader.tensors}
    assert sum(tensor.n_bytes for tensor in reader.tensors) == weight_bytes(model, plan)
    assert reader.fields["general.file_type"].contents() == GRID_TYPES[plan.file_type]
    for name, layer in (("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"), ("ffn_down", "mlp.down_proj")):
        weight = weights[f"model.layers.1.{layer}"]
        assert weight is not None
        heads = {"attn_q": 4, "attn_k": 2}.get(name) if kind == "llama" else None
        order = row_order(len(weight.codes), heads)
        tensor = read[f"blk.1.{name}.weight"]
        assert tensor.tensor_type.name == plan.file_type
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        expected = exact(weight)[order]
        assert np.abs(values - expected).max() <= 2 * ROUNDING * np.abs(expected).max()
        bias = biases[f"model.layers.1.{layer}"]
        if bias is not None:
            assert np.array_equal(read[f"blk.1.{name}.bias"].data, bias.detach().numpy())
