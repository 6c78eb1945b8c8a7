"""Scales are stored as they were when the codes were computed."""

from __future__ import annotations

import pytest
import torch

from agentic_compression.checkpoints.quantized import QuantizedTensor
from agentic_compression.methods.awq import AwqConfig, round_weight
from agentic_compression.methods.block_tuning import Rounding, TunedRounding
from agentic_compression.methods.gptq import GptqConfig, quantize_with_gram
from agentic_compression.methods.layerwise import Gram
from agentic_compression.methods.rounding import grid, smallest_scale
from agentic_compression.methods.rtn import RtnConfig, quantize


def test_every_bfloat16_number_from_the_smallest_scale_on_is_a_float16_number() -> None:
    smallest = smallest_scale(torch.float16)
    bits = torch.arange(torch.tensor(smallest).to(torch.bfloat16).view(torch.int16).item(), 0x4780, dtype=torch.int16)
    numbers = bits.view(torch.bfloat16).to(torch.float32)
    assert float(numbers[0]) == smallest
    assert torch.equal(numbers.to(torch.float16).to(torch.float32), numbers)
    below = (bits[:1] - 1).view(torch.bfloat16).to(torch.float32)
    assert not torch.equal(below.to(torch.float16).to(torch.float32), below)
    assert smallest_scale(torch.bfloat16) == 0


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [3e-4, 2e-5, 1e-6])
@pytest.mark.parametrize("method", ["rtn", "gptq", "gptq in order", "awq", "autoround"])
def test_small_float16_weights_are_rounded_for_the_scale_that_is_stored(
    method: str, size: float, symmetric: bool
) -> None:
    """Half a level at most, where a scale rounded after the codes leaves codes of up to 127 many levels off."""
    generator = torch.Generator().manual_seed(0)
    weight = (size * (2 * torch.rand(16, 64, generator=generator) - 1)).to(torch.float16)
    made: QuantizedTensor
    if method == "rtn":
        made = quantize(weight, RtnConfig(bits=8, group_size=32, symmetric=symmetric))
    elif method == "awq":
        config = AwqConfig(bits=8, group_size=32, symmetric=symmetric)
        made = round_weight(weight.float(), config, None, torch.float16)
    elif method == "autoround":
        made = TunedRounding(weight, Rounding(8, 32, symmetric)).quantized()
    else:
        gram = Gram(64, "cpu")
        gram.add(torch.eye(64))  # inputs that are independent: nothing is passed on
        ordered = method == "gptq"
        made = quantize_with_gram(
            weight, gram.matrix, GptqConfig(bits=8, group_size=32, symmetric=symmetric, act_order=ordered)
        )
        made = made[0] if isinstance(made, tuple) else made
    assert made.scale.dtype == torch.float16
    scale = made.scale.float().repeat_interleave(32, dim=1)
    assert float(((made.dequantize() - weight.float()) / scale).abs().max()) < 0.76  # half, and what clips at the ends


def test_groups_of_zeros_keep_scale_one() -> None:
    scale, zero_point = grid(torch.zeros(2, 8), 4, symmetric=False, smallest=2.0**-17)
    assert scale.tolist() == [1.0, 1.0]
    assert zero_point.tolist() == [-8.0, -8.0]
