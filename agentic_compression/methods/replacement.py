"""Putting another layer in the place of every target linear, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import CompressionContext
from agentic_compression.methods.linear_layers import target_linears

__all__ = ["replace_linears"]


def replace_linears(model: Any, stage: str, context: CompressionContext, replacement: Callable[[Any], Any]) -> None:
    """Replace in place; each dense weight is freed before the next layer is made.

    Args:
        model: a causal language model.
        stage: the method's name, for progress and errors.
        context: told as layers are done.
        replacement: the new layer from a linear.

    Raises:
        CompressionError: when the model has no linears to replace.
    """
    names = [name for name, _ in target_linears(model)]
    if not names:
        raise CompressionError(
            f"{stage} works on torch.nn.Linear layers besides the output embedding, {type(model).__name__} has none; "
            "use another method (see: acf methods)"
        )
    for done, name in enumerate(names):
        context.progress(stage, done, len(names))
        model.set_submodule(name, replacement(model.get_submodule(name)))
    context.progress(stage, len(names), len(names))
