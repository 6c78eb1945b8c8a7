"""Knowledge distillation: the compressed model learns to predict what the uncompressed one predicts.

Idea: the student's distribution of the next token is brought close to the teacher's, at every position and over the
whole vocabulary, by gradient descent on the Kullback-Leibler divergence (Hinton et al. 2015, arXiv:1503.02531; for
pruned language models Muralidharan et al. 2024, Minitron, arXiv:2407.14679). Text is the training documents and, where
asked, documents that the teacher writes itself (as in LLM-QAT, Liu et al. 2023, arXiv:2305.17888), which helps where
there is little text.

Students: pruned models train all weights, zeros stay zeros; low-rank models train their factors; quantized models train
on the grid they are stored on and keep format, bits and bytes: latent weights are rounded in every forward pass, scales
and zero points train too (LSQ, Esser et al. 2020, arXiv:1902.08153; EfficientQAT, Chen et al. 2024, arXiv:2407.11062).

Changes: weights, factors, codes, scales, norms and biases; embeddings only when asked. Not covered: bitsandbytes' and
llama.cpp's types and adapters on packed layers, which it does not train; zeros of a model that was pruned and then
quantized, which are codes like any other and may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import (
    Choice,
    Compressed,
    CompressionContext,
    Method,
    MethodConfig,
    Needs,
    Range,
    Workload,
)

if TYPE_CHECKING:
    import torch

__all__ = ["METHOD", "DistillConfig", "apply", "needs"]

_STEP_TOKENS = 2048
_UNKNOWN_LENGTH = 256
_SECONDS_A_FLOP = 1 / 45e9  # one core of a current server, float32, measured with 3.8 million parameters
_SECONDS_A_BLOCK = 25e-3  # what a step costs however small the model is, attention for the most part


class DistillConfig(MethodConfig):
    """Parameters of distillation."""

    steps: Annotated[int, Choice(100, 300, 1000, 3000)] = Field(
        default=300, description="updates at most; each sees about 2,048 tokens"
    )
    learning_rate: Annotated[float, Choice(0.001, 0.003, 0.01, 0.03)] = Field(
        default=0.01, description="size of an update relative to the weights' root mean square"
    )
    temperature: Annotated[int, Choice(1, 2, 4)] = Field(
        default=1, description="of both distributions; above 1, unlikely tokens weigh more"
    )
    hidden_weight: Annotated[float, Range(0.0, 1.0, step=0.5)] = Field(
        default=0.0, description="weight of the distance between hidden states, where the widths are the same"
    )
    generated: Annotated[float, Range(0.0, 0.75, step=0.25)] = Field(
        default=0.0, description="share of the training windows that the uncompressed model writes itself"
    )
    embeddings: Annotated[bool, Choice(True, False)] = Field(
        default=False, description="whether embeddings and the output embedding train too"
    )


def apply(model: Any, config: DistillConfig, context: CompressionContext) -> Compressed:
    """Train the compressed model to imitate the uncompressed one, in place.

    Args:
        model: a causal language model whose linears are dense, low-rank or packed.
        config: steps, rates, what to compare, share of generated text.
        context: training windows, ``load_base`` for the teacher, scratch folder, seed, device and progress.

    Raises:
        CompressionError: no teacher, too little text, another vocabulary, or training that diverges.
    """
    from agentic_compression.methods.distill_student import trainable_student
    from agentic_compression.methods.training import TrainingPlan, batch_tokens_for, in_float32, train, window_limit
    from agentic_compression.methods.training_objective import Imitation, load_teacher

    teacher = load_teacher(model, "distill", context)
    plan = TrainingPlan(
        name="distill",
        steps=config.steps,
        learning_rate=config.learning_rate,
        seed=context.seed,
        step_tokens=_STEP_TOKENS,
        batch_tokens=batch_tokens_for(model, _STEP_TOKENS, context.batch_size),
        longest=window_limit(model),
    )
    hidden_weight, notes = _hidden_weight(model, teacher, config)
    with in_float32(teacher):
        windows, extra = _windows(teacher, config, plan.longest, context)
        notes.append(f"{len(windows)} windows of text, {len(extra)} written by the uncompressed model")
        with trainable_student(model, teacher, config.embeddings) as parameters:
            sample = windows[0][:, :16].to(context.device)
            objective = Imitation(model, teacher, sample, config.temperature, hidden_weight)
            result = train(parameters, objective, windows, plan, context, extra)
    return Compressed(model=model, notes=(*notes, result.note))


def needs(workload: Workload, config: DistillConfig) -> Needs:
    """Teacher and student in float32, gradients, two moments and the best weights; three passes a token and a half.

    The student's forward and backward pass take 6 operations a parameter and token, the teacher's forward pass 2, and
    held-out measurements and generated text about a third more.
    """
    weights = 4 * workload.parameters
    activations = min(_STEP_TOKENS * 68 * workload.hidden * workload.blocks, 1 << 30)
    logits = 4 * (64 << 20)
    operations = 8 * workload.parameters * config.steps * _STEP_TOKENS * 4 / 3
    return Needs(
        peak_bytes=6 * weights + activations + logits,
        seconds=operations * _SECONDS_A_FLOP / workload.threads + config.steps * workload.blocks * _SECONDS_A_BLOCK,
    )


def _hidden_weight(model: Any, teacher: Any, config: DistillConfig) -> tuple[float, list[str]]:
    """The weight of the hidden states' part, 0 where the widths differ, and a note that says so."""
    mine, theirs = (each.config.get_text_config().hidden_size for each in (model, teacher))
    if config.hidden_weight and mine != theirs:
        return 0.0, [f"hidden_weight was not used: the width is {mine}, that of the uncompressed model {theirs}"]
    return config.hidden_weight, []


def _windows(
    teacher: Any, config: DistillConfig, longest: int, context: CompressionContext
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Windows of text, of which some are held out, and generated ones; the latter take the former's place without text.

    No more text is generated than the steps can read.
    """
    from agentic_compression.methods.distill_samples import sample_windows

    windows = list(context.training or ())
    if not windows and not config.generated:
        raise CompressionError("distill needs training text, got none; give more documents, or use generated=0.5")
    if not config.generated:
        return windows, []
    lengths = sorted(min(longest, window.shape[1]) for window in windows) or [_UNKNOWN_LENGTH]
    typical = lengths[len(lengths) // 2]
    read = config.steps * _STEP_TOKENS // typical
    wanted = read if not windows else round(len(windows) * config.generated / (1 - config.generated))
    count = max(2, min(wanted, round(read * config.generated)))
    written = sample_windows(teacher, count, min(longest, typical * 3 // 2), context)
    return (windows, written) if windows else (written, [])


METHOD = Method(
    name="distill",
    category="healing",
    config=DistillConfig,
    apply=apply,
    summary="train the compressed model to predict like the uncompressed one; zeros, ranks and bits stay as they are",
    paper="Hinton et al. 2015, arXiv:1503.02531; Chen et al. 2024, EfficientQAT, arXiv:2407.11062",
    trains=True,
    must_follow=("pruning", "low_rank", "quantization"),
    may_follow=("pruning", "low_rank", "quantization", "healing"),
    may_not_follow=("gguf", "nf4", "int8", "fp8", "qlora"),
    needs=needs,
)
