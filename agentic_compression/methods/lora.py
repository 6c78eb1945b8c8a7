"""Low-rank adaptation of a compressed model, merged into its weights afterwards.

Idea: the weights are fixed and every linear gets a trainable correction ``B A`` of rank ``r`` (Hu et al. 2021,
arXiv:2106.09685, with ``alpha = r``: steps are sized by the weight that is corrected, which leaves another factor
nothing to do), with PEFT's layers. Few values train, so the optimizer needs little memory, and the correction
cannot move the model far, which protects against small training texts. It learns from the uncompressed model's
distribution (``teacher``) or from the text alone. On sparse weights the correction is masked, in training and when it
is merged, so that zeros stay zeros.

Changes: weights of the target linears, factors of low-rank layers among them; sizes and formats stay. Not covered:
norms, biases, embeddings; quantized layers, whose grid the sum would leave: see ``qlora`` and ``distill``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import (
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Workload,
)

__all__ = ["METHOD", "LoraConfig", "apply", "needs"]

_STEP_TOKENS = 2048
_SECONDS_A_FLOP = 1 / 45e9  # one core of a current server, float32, measured with 3.8 million parameters
_SECONDS_A_BLOCK = 25e-3  # what a step costs however small the model is, attention for the most part


class LoraConfig(MethodConfig):
    """Parameters of low-rank adaptation."""

    rank: Annotated[int, Choice(4, 8, 16, 32, 64)] = Field(default=16, description="of every correction")
    steps: Annotated[int, Choice(100, 300, 1000, 3000)] = Field(
        default=300, description="updates at most; each sees about 2,048 tokens"
    )
    learning_rate: Annotated[float, Choice(0.001, 0.003, 0.01, 0.03)] = Field(
        default=0.01, description="size of an update relative to the root mean square of what it changes"
    )
    teacher: Annotated[bool, Choice(True, False)] = Field(
        default=True, description="imitate the uncompressed model; false: predict the training text"
    )


def apply(model: Any, config: LoraConfig, context: CompressionContext) -> Compressed:
    """Train corrections of all target linears and merge them, in place.

    Args:
        model: a causal language model whose linears are dense, sparse or low-rank.
        config: rank, steps, rate, loss.
        context: training windows, ``load_base`` for the teacher, scratch folder, seed, device and progress.

    Raises:
        CompressionError: nothing to adapt, no text, no teacher, or training that diverges.
    """
    from agentic_compression.methods.training import in_float32, train
    from agentic_compression.methods.training_adapters import adapter_plan, objective_for

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with in_float32(model):
        tuner = _inject(model, config, context.seed)
        objective, _ = objective_for(model, "lora", config.teacher, context)
        plan = adapter_plan("lora", model, config.steps, config.learning_rate, context)
        result = train(_parameters(model), objective, list(context.training or ()), plan, context)
        merged = tuner.merge_and_unload()
    return Compressed(model=merged, notes=(result.note,))


def needs(workload: Workload, config: LoraConfig) -> Needs:
    """Student and teacher in float32, activations, corrections with their gradients and moments.

    PEFT's layers keep about half as many activations again.
    """
    adapters = 4 * config.rank * 2 * workload.hidden * max(1, workload.linear_parameters // workload.hidden**2)
    activations = min(_STEP_TOKENS * 102 * workload.hidden * workload.blocks, 1 << 30)
    models = 2 if config.teacher else 1
    operations = (4 + 2 * config.teacher) * workload.parameters * config.steps * _STEP_TOKENS * 4 / 3
    return Needs(
        peak_bytes=4 * workload.parameters * models + 5 * adapters + activations + 4 * (64 << 20),
        seconds=operations * _SECONDS_A_FLOP / workload.threads + config.steps * workload.blocks * _SECONDS_A_BLOCK,
    )


def _inject(model: Any, config: LoraConfig, seed: int) -> Any:
    """PEFT's tuner around the model, with corrections in place of the target linears."""
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import LoraModel
    from torch import nn

    from agentic_compression.methods.linear_layers import target_linears
    from agentic_compression.methods.lora_masked import sparse_layer

    names = [name for name, _ in target_linears(model)]
    if not names:
        raise CompressionError(
            "lora found no dense linear to adapt; on a quantized model use qlora or distill (see: acf methods)"
        )
    settings = PeftConfig(r=config.rank, lora_alpha=config.rank, target_modules=names, lora_dropout=0.0, bias="none")
    layer_for: Any = sparse_layer  # PEFT's own hook; it only calls what it is given
    settings._register_custom_module({nn.Linear: layer_for})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(model, settings, "default")


def _parameters(model: Any) -> dict[str, tuple[Any, float]]:
    """The factors of every correction with the sizes of their steps."""
    from peft.tuners.lora import LoraLayer

    from agentic_compression.methods.distill_student import relative_step
    from agentic_compression.methods.training_adapters import adapter_steps

    chosen = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            size = relative_step(module.get_base_layer().weight)
            steps = adapter_steps(down, size, module.scaling["default"])
            chosen[f"{name}.down"], chosen[f"{name}.up"] = (down, steps[0]), (up, steps[1])
    return chosen


METHOD = Method(
    name="lora",
    category="healing",
    config=LoraConfig,
    apply=apply,
    summary="train low-rank corrections of a pruned or low-rank model and merge them; zeros and ranks stay",
    paper="Hu et al. 2021, arXiv:2106.09685",
    trains=True,
    must_follow=("pruning", "low_rank"),
    may_follow=("pruning", "low_rank"),
    needs=needs,
    requires=("peft",),
)
