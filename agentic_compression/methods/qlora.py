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

from collections.abc import Callable
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
_LARGEST_RESIDUAL = 0.5  # of the quantized weight's norm; two unrelated weights of one size differ by 1.4
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

    from agentic_compression.methods.training import held_out_loss, train
    from agentic_compression.methods.training_adapters import adapter_plan, objective_for

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    objective, base = objective_for(model, "qlora", config.teacher, context)
    if base is None and config.start == "residual" and context.load_base is not None:
        base = context.load_base()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        adapted = _attach(model, config.rank)
        plan = adapter_plan("qlora", model, config.steps, config.learning_rate, context)

        def loss() -> float:
            return held_out_loss(objective, context.training or (), plan, context)

        notes: list[str] = []
        before = loss()
        if config.start == "residual":
            notes += _started(adapted, originals_of(model, base), before, loss)
        result = train(_trainable(adapted), objective, list(context.training or ()), plan, context)
        extra = _to_sixteen_bits(model)
        if not loss() <= before:
            _reset(adapted)
            notes.append("rounding the adapters to 16 bits undid what they gained, so they are zero")
    note = f"adapters stay beside the codes ({extra} bytes): merging them would need quantizing again"
    return Compressed(model=model, notes=(note, *notes, result.note))


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


def originals_of(model: Any, base: Any) -> dict[str, Any]:
    """The uncompressed model's modules by the names they have in ``model``, whose blocks may be fewer."""
    from agentic_compression.methods.layerwise import blocks_of
    from agentic_compression.methods.training_objective import kept_blocks

    if base is None:
        return {}
    try:
        (prefix, mine), (other, theirs) = blocks_of(model), blocks_of(base)
    except CompressionError:  # no list of blocks: nothing that drops blocks can have come before
        return dict(base.named_modules())
    found = dict(base.named_modules())
    if len(mine) >= len(theirs):
        return found
    for index, before in enumerate(kept_blocks(mine, theirs)):
        for name, module in theirs[before].named_modules(prefix=f"{other}.{before}"):
            found[f"{prefix}.{index}{name.removeprefix(f'{other}.{before}')}"] = module
    return found


def _attach(model: Any, rank: int) -> dict[str, Any]:
    """Put factors whose product is zero on every quantized linear; returns the adapted layers by name."""
    from torch import nn

    from agentic_compression.checkpoints.adapted_linear import AdaptedLinear

    targets = quantized_linears(model)
    if not targets:
        raise CompressionError("qlora needs quantized layers, found none; put nf4, gptq or rtn before it, or use lora")
    adapted = {}
    for name, layer in targets:
        device = layer.dequantize().device
        down = nn.Linear(layer.in_features, rank, bias=False, device=device)
        up = nn.Linear(rank, layer.out_features, bias=False, device=device)
        nn.init.zeros_(up.weight)
        adapted[name] = AdaptedLinear(layer, down, up)
        model.set_submodule(name, adapted[name])
    return adapted


def _started(adapted: dict[str, Any], originals: dict[str, Any], before: float, loss: Callable[[], float]) -> list[str]:
    """Start from what quantization lost where that is known, unless the model gets worse; returns notes.

    What stands under a layer's name may be something else than what was quantized: another stage may have scaled or
    trained the weight. A difference as large as that is no rounding error.

    Args:
        adapted: layers with factors of product zero.
        originals: modules of the uncompressed model by the same names.
        before: held-out loss without adapters.
        loss: measures it.
    """
    skipped = 0
    for name, layer in adapted.items():
        original = getattr(originals.get(name), "weight", None)
        weight = layer.base.dequantize()
        if original is None or original.shape != weight.shape:
            skipped += 1
            continue
        residual = original.detach().float() - weight
        if bool(residual.norm() < _LARGEST_RESIDUAL * weight.norm()):
            _start_from(residual, layer.down, layer.up)
        else:
            skipped += 1
    if skipped == len(adapted):
        return ["adapters start at zero: no uncompressed weight resembles a quantized one"]
    after = loss()
    if not after <= before:
        _reset(adapted)
        return [
            f"adapters start at zero: from what quantization lost, the held-out loss is {after:.4g}, not {before:.4g}"
        ]
    if skipped:
        return [
            f"{skipped} of {len(adapted)} adapters start at zero: no uncompressed weight resembles the quantized one"
        ]
    return []


def _reset(adapted: dict[str, Any]) -> None:
    """Back to factors whose product is zero."""
    import torch

    for layer in adapted.values():
        layer.down.reset_parameters()
        torch.nn.init.zeros_(layer.up.weight)


def _trainable(adapted: dict[str, Any]) -> dict[str, tuple[Any, float]]:
    """The factors with the sizes of their steps."""
    from agentic_compression.methods.distill_student import relative_step
    from agentic_compression.methods.training_adapters import adapter_steps

    chosen = {}
    for name, layer in adapted.items():
        down, up = layer.down.weight, layer.up.weight
        steps = adapter_steps(down, relative_step(layer.base.dequantize()), 1.0)
        chosen[f"{name}.down"], chosen[f"{name}.up"] = (down, steps[0]), (up, steps[1])
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
