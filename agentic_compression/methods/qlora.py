"""Low-rank adapters on top of a quantized model.

Idea: the quantized weights are fixed in their packed form, gradients flow through them, and every quantized linear gets
a trainable pair of thin 16-bit factors whose product is added to its output (Dettmers et al. 2023, QLoRA,
arXiv:2305.14314). The factors can start from the largest singular vectors of what quantization lost (LoftQ, Li et al.
2023, arXiv:2310.08659). They learn from the uncompressed model's distribution (``teacher``) or from the text alone.

Changes: adds the factors, which are stored and run beside the codes: files and memory grow by 2 bytes for each of
``rank * (in_features + out_features)`` values a layer, and every token takes two more thin products. Merging them is
not possible without quantizing again: the sum is not on the grid. ``distill`` trains the codes instead, at no extra
bytes. Only this package loads the result.
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

__all__ = ["METHOD", "QloraConfig", "apply", "needs"]

_STEP_TOKENS = 2048
_SECONDS_A_FLOP = 1 / 45e9  # one core of a current server, float32, measured with 3.8 million parameters
_SECONDS_A_BLOCK = 25e-3  # what a step costs however small the model is, attention for the most part


class QloraConfig(MethodConfig):
    """Parameters of adapters on quantized layers."""

    rank: Annotated[int, Choice(4, 8, 16, 32, 64)] = Field(default=8, description="of every correction")
    steps: Annotated[int, Choice(100, 300, 1000, 3000)] = Field(
        default=300, description="updates at most; each sees about 2,048 tokens"
    )
    learning_rate: Annotated[float, Choice(0.001, 0.003, 0.01, 0.03)] = Field(
        default=0.01, description="size of an update relative to the root mean square of what it changes"
    )
    start: Annotated[str, Choice("residual", "zero")] = Field(
        default="residual", description="residual: from what quantization lost; zero: from no correction"
    )
    teacher: Annotated[bool, Choice(True, False)] = Field(
        default=True, description="imitate the uncompressed model; false: predict the training text"
    )


def apply(model: Any, config: QloraConfig, context: CompressionContext) -> Compressed:
    """Put trained adapters on every quantized linear, in place.

    Args:
        model: a causal language model with quantized linears of any kind that passes gradients on to its inputs.
        config: rank, steps, rate, start, loss.
        context: training windows, ``load_base``, scratch folder, seed, device and progress.

    Raises:
        CompressionError: no quantized layer, no text, no teacher, or training that diverges.
    """
    import torch

    from agentic_compression.methods.training import train
    from agentic_compression.methods.training_adapters import adapter_plan, objective_for

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    objective, base = objective_for(model, "qlora", config.teacher, context)
    if base is None and config.start == "residual" and context.load_base is not None:
        base = context.load_base()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        parameters = _adapt(model, base if config.start == "residual" else None, config)
    plan = adapter_plan("qlora", model, config.steps, config.learning_rate, context)
    result = train(parameters, objective, list(context.training or ()), plan, context)
    extra = _to_sixteen_bits(model)
    note = f"adapters stay beside the codes ({extra} bytes): merging them would need quantizing again"
    return Compressed(model=model, notes=(note, result.note))


def needs(workload: Workload, config: QloraConfig) -> Needs:
    """The quantized model, the teacher in float32, activations, adapters with their gradients and moments."""
    adapters = 4 * config.rank * 2 * workload.hidden * max(1, workload.linear_parameters // workload.hidden**2)
    activations = min(_STEP_TOKENS * 68 * workload.hidden * workload.blocks, 1 << 30)
    teacher = 4 * workload.parameters if config.teacher or config.start == "residual" else 0
    operations = (5 + 2 * config.teacher) * workload.parameters * config.steps * _STEP_TOKENS * 4 / 3
    return Needs(
        peak_bytes=workload.weight_bytes + teacher + 5 * adapters + activations + 4 * (64 << 20),
        seconds=operations * _SECONDS_A_FLOP / workload.threads + config.steps * workload.blocks * _SECONDS_A_BLOCK,
    )


def quantized_linears(model: Any) -> list[tuple[str, Any]]:
    """Layers that multiply by a fixed quantized weight, by name: what has widths and can be dequantized."""
    head = model.get_output_embeddings()
    return [
        (name, module)
        for name, module in model.named_modules()
        if module is not head
        and all(hasattr(module, what) for what in ("in_features", "out_features", "dequantize", "stored_kind"))
    ]


def _adapt(model: Any, base: Any, config: QloraConfig) -> dict[str, tuple[Any, float]]:
    """Wrap every quantized linear; the factors, float32, by name with the sizes of their steps."""
    import torch
    from torch import nn

    from agentic_compression.checkpoints.adapted_linear import AdaptedLinear
    from agentic_compression.methods.distill_student import relative_step
    from agentic_compression.methods.training_adapters import adapter_steps

    targets = quantized_linears(model)
    if not targets:
        raise CompressionError("qlora needs quantized layers, found none; put nf4, gptq or rtn before it, or use lora")
    originals = {} if base is None else dict(base.named_modules())
    chosen = {}
    for name, layer in targets:
        weight = layer.dequantize(torch.float32)
        down = nn.Linear(layer.in_features, config.rank, bias=False, device=weight.device)
        up = nn.Linear(config.rank, layer.out_features, bias=False, device=weight.device)
        nn.init.zeros_(up.weight)
        original = getattr(originals.get(name), "weight", None)
        if original is not None and original.shape == weight.shape:
            _start_from(original.detach().float() - weight, down, up)
        steps = adapter_steps(down.weight, relative_step(weight), 1.0)
        chosen[f"{name}.down"], chosen[f"{name}.up"] = (down.weight, steps[0]), (up.weight, steps[1])
        model.set_submodule(name, AdaptedLinear(layer, down, up))
    return chosen


def _start_from(residual: Any, down: Any, up: Any) -> None:
    """Factors of the best approximation of ``residual``, balanced as in :mod:`low_rank`."""
    import torch

    rank = min(down.out_features, *residual.shape)
    extended = min(rank + 8, *residual.shape)
    u, s, v = torch.svd_lowrank(residual, q=extended, niter=4)
    root = s[:rank].sqrt()
    with torch.no_grad():
        down.weight[:rank] = root[:, None] * v[:, :rank].T
        up.weight[:, :rank] = u[:, :rank] * root


def _to_sixteen_bits(model: Any) -> int:
    """Round the factors to the 16-bit type they are stored in; returns their bytes."""
    import torch

    from agentic_compression.checkpoints.adapted_linear import AdaptedLinear

    dtype = torch.float16 if model.dtype == torch.float16 else torch.bfloat16
    total = 0
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            for factor in (module.down, module.up):
                factor.weight.data = factor.weight.data.to(dtype)
                factor.weight.requires_grad_(False)
                total += factor.weight.nbytes
    return total


METHOD = Method(
    name="qlora",
    category="healing",
    config=QloraConfig,
    apply=apply,
    summary="train small 16-bit adapters beside the weights of a quantized model; they add to its size",
    paper="Dettmers et al. 2023, QLoRA, arXiv:2305.14314; Li et al. 2023, LoftQ, arXiv:2310.08659",
    trains=True,
    must_follow=("quantization",),
    may_follow=("pruning", "low_rank", "quantization", "healing"),
    may_not_follow=("gguf", "qlora"),
    needs=needs,
)
