"""Walking a model block by block with the inputs that its already compressed first part produces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import CompressionContext
from agentic_compression.methods.linear_layers import target_linears

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Gram", "blocks_of", "walk_blocks"]

_BATCH_WINDOWS = 16


class Gram:
    """Running mean of ``x xᵀ`` over the inputs of one linear: ``(in_features, in_features)``, float32."""

    def __init__(self, in_features: int, device: str) -> None:
        """Start at zero."""
        import torch

        self.matrix = torch.zeros((in_features, in_features), dtype=torch.float32, device=device)
        self.count = 0

    def add(self, x: torch.Tensor) -> None:
        """Take inputs ``(..., in_features)`` in."""
        import torch

        rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
        self.matrix.mul_(self.count / (self.count + rows.shape[0]))
        self.count += rows.shape[0]
        self.matrix.addmm_(rows.T, rows, alpha=1 / self.count)


def blocks_of(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder's blocks: the first list of as many modules as the config has hidden layers.

    Returns:
        Name and module list.

    Raises:
        CompressionError: when the model has no such list.
    """
    from torch import nn

    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return name, module
    raise CompressionError(
        f"{type(model).__name__} has no list of {layers} decoder blocks, which calibrated methods walk; "
        "use rtn, magnitude or low_rank:whiten=false"
    )


def walk_blocks(
    model: Any, context: CompressionContext, what: str
) -> Iterator[list[tuple[str, torch.nn.Linear, Gram]]]:
    """Yield, block by block, every target linear with the Gram matrix of its calibration inputs.

    The caller changes the linears' weights in place, or replaces the modules, before asking for the next block, whose
    inputs then come from the changed block (sequential calibration, as in GPTQ §3). Within a block all linears see
    inputs of the unchanged block.

    Args:
        model: a causal language model with a list of decoder blocks.
        context: calibration windows, device, progress.
        what: name to report progress under.

    Raises:
        CompressionError: when there is no calibration data or no list of blocks.
    """
    import torch

    if not context.calibration:
        raise CompressionError(f"{what} needs calibration text, got none; give calibration_path, or use rtn")
    prefix, blocks = blocks_of(model)
    targets = target_linears(model)
    with torch.no_grad():
        hidden, arguments = _first_inputs(model, blocks, context)
        for index, block in enumerate(blocks):
            context.progress(what, index, len(blocks))
            start = f"{prefix}.{index}."
            mine = [(name, linear) for name, linear in targets if name.startswith(start)]
            grams = _collect(block, [linear for _, linear in mine], hidden, [kept[index] for kept in arguments])
            yield [(name, linear, gram) for (name, linear), gram in zip(mine, grams, strict=True)]
            hidden = [_run(block, x, kept[index]) for x, kept in zip(hidden, arguments, strict=True)]
        context.progress(what, len(blocks), len(blocks))


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _first_inputs(
    model: Any, blocks: nn.ModuleList, context: CompressionContext
) -> tuple[list[torch.Tensor], list[list[_Arguments]]]:
    """Inputs ``(batch, tokens, hidden)`` of the first block, and what else every block is called with, by batch.

    Masks and rotary embeddings do not depend on the weights of the blocks, so one pass over the unchanged model gives
    those of every block; blocks share them in memory.
    """
    hidden: list[torch.Tensor] = []
    arguments: list[list[_Arguments]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        x, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        if module is blocks[0]:
            hidden.append(x)
            arguments.append([])
        arguments[-1].append((rest, kwargs))

    handles = [block.register_forward_pre_hook(record, with_kwargs=True) for block in blocks]
    try:
        for batch in _batches(context.calibration or ()):
            model(input_ids=batch.to(context.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return hidden, arguments


def _batches(windows: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Windows of equal length together, at most 16: ``(windows, tokens)``. Nothing is padded."""
    import torch

    by_length: dict[int, list[torch.Tensor]] = {}
    for window in windows:
        by_length.setdefault(window.shape[1], []).append(window)
    for group in by_length.values():
        for start in range(0, len(group), _BATCH_WINDOWS):
            yield torch.cat(group[start : start + _BATCH_WINDOWS])


def _collect(
    block: nn.Module, linears: Sequence[nn.Linear], hidden: list[torch.Tensor], arguments: list[_Arguments]
) -> list[Gram]:
    grams = [Gram(linear.in_features, str(linear.weight.device)) for linear in linears]

    def hook(gram: Gram) -> Any:
        def take(_: nn.Module, args: tuple[Any, ...]) -> None:
            gram.add(args[0])

        return take

    handles = [linear.register_forward_pre_hook(hook(gram)) for linear, gram in zip(linears, grams, strict=True)]
    try:
        for x, kept in zip(hidden, arguments, strict=True):
            _run(block, x, kept)
    finally:
        for handle in handles:
            handle.remove()
    return grams


def _run(block: nn.Module, x: torch.Tensor, kept: _Arguments) -> torch.Tensor:
    rest, kwargs = kept
    result = block(x, *rest, **kwargs)
    output: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return output
