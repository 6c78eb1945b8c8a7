"""Gives a trained model outlier channels without changing what it computes.

Large language models have a few channels that are many times larger than the rest, and that is what makes them hard to
round to few bits (Dettmers et al., "LLM.int8()", 2022; Xiao et al., "SmoothQuant", 2022). A model of a few million
parameters trained for minutes has none: it would shrug off what breaks a real model. SmoothQuant moves such scales out
of the activations into the weights; this is the same identity, used to put them in.

For a Llama block with positive scales ``s``, ``W diag(s)`` behind a norm of weight ``g / s`` is the same function, and
so is ``diag(s) W`` in front of ``V diag(1 / s)`` where only a product lies between the two (value and output
projection; up and down projection).
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["spread_channels"]


@torch.no_grad()
def spread_channels(model: Any, sigma: float, seed: int) -> None:
    """Rescales channels of every block in place by log-normal factors.

    Args:
        model: A ``LlamaForCausalLM`` without biases.
        sigma: Standard deviation of the factors' natural logarithm; 0 changes nothing.
        seed: Seed of the factors.
    """
    generator = torch.Generator().manual_seed(seed)

    def factors(count: int) -> torch.Tensor:
        return torch.exp(sigma * torch.randn(count, generator=generator))

    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            scale = factors(norm.weight.numel())
            norm.weight.div_(scale)
            for reader in readers:
                reader.weight.mul_(scale)
        _balance(attention.v_proj.weight, attention.o_proj.weight, factors, attention.head_dim)
        _balance(mlp.up_proj.weight, mlp.down_proj.weight, factors, 1)


def _balance(first: torch.Tensor, second: torch.Tensor, factors: Any, head_dim: int) -> None:
    """Scales the rows of ``first`` and the matching columns of ``second`` by inverse factors.

    Args:
        first: Shape (key-value heads * head_dim, inputs).
        second: Shape (outputs, heads * head_dim); each key-value head serves ``heads / key-value heads`` heads.
        factors: Draws that many factors.
        head_dim: Channels that stay together when a head is repeated.
    """
    scale = factors(first.shape[0])
    first.mul_(scale[:, None])
    repeats = second.shape[1] // first.shape[0]
    columns = scale.reshape(-1, head_dim).repeat_interleave(repeats, dim=0).flatten()
    second.div_(columns[None, :])
