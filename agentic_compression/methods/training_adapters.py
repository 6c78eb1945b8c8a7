"""What LoRA and QLoRA share: how large the steps of a pair of factors are, and which loss they train on."""

from __future__ import annotations

from typing import Any

import torch

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import CompressionContext
from agentic_compression.methods.training import TrainingPlan, batch_tokens_for, window_limit
from agentic_compression.methods.training_objective import Imitation, NextToken, load_teacher

__all__ = ["STEP_TOKENS", "adapter_plan", "adapter_steps", "objective_for"]

STEP_TOKENS = 2048


def adapter_steps(down: torch.Tensor, weight_size: float, scaling: float) -> tuple[float, float]:
    """Sizes of one step of ``down`` and ``up`` relative to the learning rate.

    ``down`` moves in proportion to itself. ``up`` starts at zero and has no size of its own; its step is the one that
    changes ``scaling * up @ down`` by the learning rate times the size of the weight that it corrects.

    Args:
        down: ``(rank, in_features)``, as initialised.
        weight_size: root mean square of the weight.
        scaling: factor of the product.
    """
    size = float(down.detach().float().square().mean().sqrt())
    return size, weight_size / (scaling * size * down.shape[0] ** 0.5)


def adapter_plan(name: str, model: Any, steps: int, learning_rate: float, context: CompressionContext) -> TrainingPlan:
    """The plan both methods train by."""
    return TrainingPlan(
        name=name,
        steps=steps,
        learning_rate=learning_rate,
        seed=context.seed,
        step_tokens=STEP_TOKENS,
        batch_tokens=batch_tokens_for(model, STEP_TOKENS, context.batch_size),
        longest=window_limit(model),
    )


def objective_for(
    model: Any, name: str, teacher: bool, context: CompressionContext
) -> tuple[Imitation | NextToken, Any]:
    """The loss, and the uncompressed model when it is needed.

    Args:
        model: to train.
        name: of the method, for messages.
        teacher: imitate the uncompressed model; else predict the text's own tokens.
        context: training windows and how to load the teacher.

    Raises:
        CompressionError: no training text, or no teacher where one is asked for.
    """
    if not context.training:
        raise CompressionError(f"{name} needs training text, got none; give more documents (see: acf methods)")
    sample = context.training[0][:, :16].to(context.device)
    if not teacher:
        return NextToken(model, sample), None
    base = load_teacher(model, name, context)
    for parameter in base.parameters():
        parameter.data = parameter.data.to(torch.float32)
    return Imitation(model, base, sample), base
