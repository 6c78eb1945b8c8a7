"""GGUF: the model as one file for llama.cpp, quantized to its block types.

Idea: llama.cpp runs small models on CPUs several times faster than general frameworks, from a file whose weights lie
in blocks of 32 or 256 with their own scales (k-quants, Kawrakow 2023, https://github.com/ggml-org/llama.cpp/pull/1684;
i-quants with codebooks after QuIP#, Tseng et al. 2024, arXiv:2402.04396). A file type is a mixture: ``Q4_K_M`` gives
the value and down projections that suffer most more bits. An importance matrix, the mean squared input of every column
on calibration text, weighs the rounding error (https://github.com/ggml-org/llama.cpp/pull/4861).

Changes: every weight, embeddings and output layer too, gets a type by llama.cpp's own rules, quantized by llama.cpp's
own code when the checkpoint is saved; the model in memory stays as it is. Layers split by low_rank are multiplied out
again, for llama.cpp has no such layers. The tokenizer goes into the file, and the export is refused unless llama.cpp's
ids agree with the tokenizer's on a set of texts. Not covered: architectures beside Llama, Mistral, Qwen2 and Qwen3,
models with a sliding window beyond it, activations and the key-value cache. Zeros of a pruned model are stored like
any other weight.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.checkpoints.gguf_types import needs_importance
from agentic_compression.methods.interface import (
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Workload,
)

__all__ = ["METHOD", "GgufConfig", "apply"]

_UNWEIGHED = ("F16", "BF16", "Q8_0")
_WEIGHTS_PER_SECOND = {
    "F16": 3e8,
    "BF16": 1.5e8,
    "Q8_0": 1.8e8,
    "Q6_K": 3.5e7,
    "Q4_0": 4e7,
    "Q3_K_M": 2e7,
    "Q3_K_S": 2.9e7,
    "IQ4_NL": 3.5e6,
    "IQ4_XS": 3.5e6,
    "IQ3_S": 4e6,
    "IQ3_XXS": 2.9e6,
    "IQ2_S": 1.9e6,
    "IQ2_XXS": 3.6e6,
}
"""Of ggml's quantizers with an importance matrix on one AVX-512 core, measured; others are near the number below."""
_USUAL_WEIGHTS_PER_SECOND = 1e7
_BUFFERS = 64_000_000  # what libraries and allocators keep, whatever the model


class GgufConfig(MethodConfig):
    """Parameters of the export."""

    type: Annotated[
        str,
        Choice(
            "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS",
            "Q3_K_M", "Q3_K_S", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XXS",
        ),
    ] = Field(default="Q4_K_M", description="llama.cpp's file type; the number is about the bits a weight")  # fmt: skip
    importance: Annotated[bool, Choice(True, False)] = Field(
        default=True,
        description="weigh rounding errors by calibration inputs; IQ2_* and IQ3_XXS always, F16, BF16 and Q8_0 never",
    )


def apply(model: Any, config: GgufConfig, context: CompressionContext) -> Compressed:
    """Plan the file: a type for every weight, and the importance of its columns.

    Args:
        model: a dense causal language model of a supported architecture; low-rank pairs are multiplied out in place.
        config: file type, importance.
        context: calibration windows where the importance is wanted; their text is also used to check the tokenizer.

    Raises:
        CompressionError: when llama.cpp has no form for the model, or calibration text is missing.
    """
    from dataclasses import replace

    from agentic_compression.checkpoints.gguf_architecture import gguf_layout
    from agentic_compression.checkpoints.gguf_plan import GgufPlan

    notes = _multiply_out(model)
    layout = gguf_layout(model)
    importance = _importance(model, context) if _calibrates(config) else {}
    types, substituted = _types(config.type, layout.tensors, replace(layout.shape, importance=bool(importance)))
    plan = GgufPlan(file_type=config.type, types=types, importance=importance, probes=_texts(context))
    return Compressed(model=model, notes=(*notes, *substituted), gguf=plan)


def _calibrates(config: GgufConfig) -> bool:
    return needs_importance(config.type) or (config.importance and config.type not in _UNWEIGHED)


def _multiply_out(model: Any) -> list[str]:
    """Put a dense linear in the place of every low-rank pair; what to note about it."""
    import torch
    from torch import nn

    from agentic_compression.checkpoints.low_rank_linear import LowRankLinear

    pairs = [(name, module) for name, module in model.named_modules() if isinstance(module, LowRankLinear)]
    for name, pair in pairs:
        down: Any = pair.down
        up: Any = pair.up
        if type(down) is not nn.Linear or type(up) is not nn.Linear:
            continue  # the export refuses it by name
        weight = up.weight.detach().to(torch.float32) @ down.weight.detach().to(torch.float32)
        dense = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        dense.weight = nn.Parameter(weight.to(up.weight.dtype), requires_grad=False)
        dense.bias = up.bias
        model.set_submodule(name, dense)
    if not pairs:
        return []
    return [f"llama.cpp has no low-rank layers: {len(pairs)} were multiplied out and are as large as before"]


def _importance(model: Any, context: CompressionContext) -> dict[str, Any]:
    """Mean squared input by the linear's name; columns of layers that no token reached weigh alike."""
    from agentic_compression.methods.layerwise import walk_blocks

    found = {}
    for linears in walk_blocks(model, context, "gguf", matrices=False):
        found.update({name: gram.diagonal.clone() for name, _, gram in linears if gram.count})
    return found


def _types(file_type: str, tensors: Any, shape: Any) -> tuple[dict[str, str], list[str]]:
    """The type of every weight by its module's name, and a note for each width that got a substitute."""
    from agentic_compression.checkpoints.ggml import block_width
    from agentic_compression.checkpoints.gguf_types import fallback_type, tensor_type

    types: dict[str, str] = {}
    substitutes: dict[tuple[str, str, int], list[str]] = {}
    for tensor in tensors:
        if tensor.role is None:
            continue
        width = int(tensor.parameter.shape[1])
        wanted = tensor_type(file_type, tensor.role, tensor.layer, width, shape)
        types[tensor.module] = fallback_type(wanted, width)
        if types[tensor.module] != wanted:
            substitutes.setdefault((wanted, types[tensor.module], width), []).append(tensor.module)
    notes = [
        f"{wanted} needs rows of a multiple of {block_width(wanted)} weights: {len(names)} weights of {width} columns "
        f"became {used}, the first is {names[0]}"
        for (wanted, used, width), names in substitutes.items()
    ]
    return types, notes


def _texts(context: CompressionContext) -> tuple[str, ...]:
    """The calibration text again, to compare tokenizers on."""
    if context.tokenizer is None or not context.calibration:
        return ()
    return tuple(context.tokenizer.decode(window[0], skip_special_tokens=True) for window in context.calibration)


def _needs(workload: Workload, config: GgufConfig) -> Needs:
    """A walk without matrices; then one tensor's blocks, the float32 rows of the threads, the quantizers' rate."""
    from agentic_compression.methods.calibration_cost import walking_needs

    rows = workload.threads * (8 << 20)
    largest = 2 * workload.hidden * max(workload.vocabulary, workload.widest_input)
    writing = workload.weight_bytes + largest + rows + _BUFFERS
    rate = _WEIGHTS_PER_SECOND.get(config.type, _USUAL_WEIGHTS_PER_SECOND)
    seconds = workload.parameters / rate / max(workload.threads, 1)
    if not _calibrates(config):
        return Needs(peak_bytes=writing, seconds=1 + seconds)
    walk = walking_needs(workload, matrices=False)
    return Needs(peak_bytes=max(writing, walk.peak_bytes + _BUFFERS), seconds=1 + seconds + walk.seconds)


METHOD = Method(
    name="gguf",
    category="quantization",
    config=GgufConfig,
    apply=apply,
    summary="one quantized file for llama.cpp, the fastest way to run on a CPU; must be the last stage",
    paper="Kawrakow 2023, k-quants, https://github.com/ggml-org/llama.cpp/pull/1684",
    needs_calibration=True,
    calibrates=_calibrates,
    may_follow=("pruning", "low_rank", "healing"),
    requires=("gguf", "xllamacpp"),
    needs=_needs,
)
