"""AutoRound: rounding and ranges tuned by signed gradient descent, block by block.

Idea: whether a weight is rounded up or down, and how far a group's range reaches, can be tuned like parameters: an
offset for every weight and a factor for both ends of every range move by the signs of the gradients of a decoder
block's squared output error on calibration text, in a few dozen steps of linearly falling length (Cheng et al. 2023,
arXiv:2309.05516). The block sees what the quantized blocks before it make, and should make what it made in the original
model.

This is an implementation of the paper of its own. The authors' library, auto-round 0.15.1, leaves every linear dense
whose rows or columns 32 does not divide, takes windows of one length only and ends the process when none is long
enough, and sets torch's deterministic mode, print options and random state for the whole process. Tests compare the
two where the library applies.

Changes: the linears of the decoder blocks become packed integers with 16-bit scales. Weights that pruning set to zero
stay zero. Not covered: embeddings, norms, activations.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.methods.interface import (
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Workload,
)

__all__ = ["METHOD", "AutoRoundConfig", "apply", "tuning_needs"]

_STEP_TOKENS = 8 * 512


class AutoRoundConfig(MethodConfig):
    """Parameters of AutoRound."""

    bits: Annotated[int, Choice(2, 3, 4, 8)] = Field(default=4, description="bits a weight")
    group_size: Annotated[int, Choice(-1, 32, 64, 128)] = Field(
        default=64, description="input weights that share a scale; -1: a whole row"
    )
    symmetric: Annotated[bool, Choice(True, False)] = Field(
        default=False, description="grid centred on zero; false stores a zero point a group"
    )
    iters: Annotated[int, Choice(20, 50, 100, 200)] = Field(default=50, description="tuning steps a decoder block")


def apply(model: Any, config: AutoRoundConfig, context: CompressionContext) -> Compressed:
    """Tune and quantize the linears of every decoder block, in place.

    Args:
        model: a causal language model with a list of decoder blocks.
        config: bits, group size, symmetry, steps.
        context: calibration windows, device, seed, progress.

    Raises:
        CompressionError: when there is no calibration data, no list of blocks, or an activation is not finite.
    """
    from agentic_compression.methods.block_tuning import Rounding, tune_blocks
    from agentic_compression.methods.layerwise import blocks_of
    from agentic_compression.methods.linear_layers import group_notes, target_linears

    prefix, _ = blocks_of(model)
    widths = {name: layer.in_features for name, layer in target_linears(model) if name.startswith(f"{prefix}.")}
    rounding = Rounding(config.bits, config.group_size, config.symmetric)
    notes = tune_blocks(model, dict.fromkeys(widths, rounding), config.iters, context, "autoround")
    return Compressed(model=model, notes=(*group_notes(widths.items(), config.group_size), *notes))


def tuning_needs(workload: Workload, iters: int) -> Needs:
    """What tuning by blocks takes.

    Memory: the model, three float32 sets of one block's inputs, and of one block the weights, offsets, rounded weights,
    best state and gradients, with what a step of up to 4,096 tokens keeps for its gradients.
    """
    tokens = min(_STEP_TOKENS, max(1, workload.calibration_tokens))
    block = workload.linear_parameters // max(1, workload.blocks)
    inputs = 3 * 4 * workload.calibration_tokens * workload.hidden
    step = 4 * tokens * (24 * workload.hidden + 6 * workload.widest_input)
    operations = 6.0 * iters * tokens * workload.linear_parameters
    operations += 8.0 * workload.calibration_tokens * workload.linear_parameters
    return Needs(
        peak_bytes=workload.weight_bytes + inputs + 40 * block + step,
        seconds=operations / (3e10 * max(1, workload.threads)) + 0.02 * iters * workload.blocks,
    )


def _needs(workload: Workload, config: AutoRoundConfig) -> Needs:
    return tuning_needs(workload, config.iters)


METHOD = Method(
    name="autoround",
    category="quantization",
    stored_as="packed",
    config=AutoRoundConfig,
    apply=apply,
    summary="tune how weights are rounded with calibration text; best of all at 2 and 3 bits, takes minutes",
    paper="Cheng et al. 2023, SignRound, arXiv:2309.05516",
    needs_calibration=True,
    may_follow=("pruning", "low_rank", "healing"),
    needs=_needs,
)
