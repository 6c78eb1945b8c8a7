"""What blocks are called with: the same for all batches, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from agentic_compression.errors import CompressionError
from agentic_compression.methods.autoround import AutoRoundConfig
from agentic_compression.methods.autoround import apply as autoround
from agentic_compression.methods.block_running import record_blocks, run_block
from agentic_compression.methods.interface import CompressionContext
from tests.unit.methods.tiny_models import built_model, random_windows, tiny_model


def gemma4() -> Any:
    """Every block gets an embedding of the tokens of its own."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma4_text",
        vocab_size=258,
        vocab_size_per_layer_input=258,
        hidden_size=48,
        hidden_size_per_layer_input=8,
        intermediate_size=96,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        num_kv_shared_layers=0,
        head_dim=8,
        global_head_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "bloom"])
@torch.no_grad()
def test_blocks_run_one_by_one_as_in_the_model(kind: str) -> None:
    model = tiny_model() if kind == "llama" else built_model(kind)
    ids = torch.cat(random_windows(6, 24)).view(2, 3, 24)
    from agentic_compression.methods.layerwise import blocks_of

    _, blocks = blocks_of(model)
    made: list[torch.Tensor] = []
    hidden, arguments = record_blocks(model, blocks, ids)
    handle = blocks[-1].register_forward_hook(
        lambda module, args, output: made.append(output[0] if isinstance(output, tuple) else output)
    )
    for batch in ids:
        model(input_ids=batch, use_cache=False)
    handle.remove()
    for x, expected in zip(hidden, made, strict=True):
        for block, kept in zip(blocks, arguments, strict=True):
            x = run_block(block, {}, x, kept)  # noqa: PLW2901 - the stream goes from block to block
        torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (2, 2)])
def test_arguments_that_depend_on_the_tokens_are_refused(shape: tuple[int, int]) -> None:
    model = gemma4()
    ids = torch.cat(random_windows(4, 24)).view(*shape, 24)
    with pytest.raises(CompressionError, match=r"Gemma4.*\(gemma4_text\) hands its decoder blocks more .* use gptq"):
        record_blocks(model, model.model.layers, ids)
    one, arguments = record_blocks(model, model.model.layers, ids[:1, :1])  # one window is always run with its own
    assert len(one) == 1
    assert len(arguments) == 2


def test_autoround_says_so() -> None:
    with pytest.raises(CompressionError, match="gemma4_text"):
        autoround(gemma4(), AutoRoundConfig(iters=20), CompressionContext(calibration=random_windows(4)))
