"""Walking a model block by block with the inputs that its already compressed first part produces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError
from agentic_compression.methods.interface import CompressionContext
from agentic_compression.methods.linear_layers import target_linears
from agentic_compression.resident_memory import give_back_heap

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Gram", "blocks_of", "walk_blocks"]

_TOKENS_A_WINDOW = 128
_CHUNK_ELEMENTS = 1 << 22  # inputs turned into float32 at once


class Gram:
    """Running statistics of the inputs ``x`` of one linear, float32.

    Linears that see the same input (queries, keys and values; gate and up) have the same object: read it, do not change
    it, unless no other linear of the block has it.

    Attributes:
        mean_absolute: mean of ``|x|``, ``(in_features,)``.
        count: input vectors seen; 0 when no calibration token reached the linear, such as an expert never chosen.
    """

    def __init__(self, in_features: int, device: str, *, matrix: bool = True) -> None:
        """Start at zero; without ``matrix`` only the means by input are kept."""
        import torch

        shape = (in_features, in_features) if matrix else (in_features,)
        self._moments = torch.zeros(shape, dtype=torch.float32, device=device)
        self.mean_absolute = torch.zeros(in_features, dtype=torch.float32, device=device)
        self.count = 0

    @property
    def matrix(self) -> torch.Tensor:
        """Mean of ``x xᵀ``, ``(in_features, in_features)``."""
        if self._moments.dim() == 1:
            raise ValueError("this walk keeps no matrices; ask for them: walk_blocks(…, matrices=True)")
        return self._moments

    @property
    def diagonal(self) -> torch.Tensor:
        """Mean of ``x²`` by input, ``(in_features,)``; a copy, so that keeping it does not keep the matrix."""
        return (self._moments if self._moments.dim() == 1 else self._moments.diagonal()).clone()

    def add(self, x: torch.Tensor) -> None:
        """Take inputs ``(..., in_features)`` in."""
        import torch

        flat = x.detach().reshape(-1, x.shape[-1])
        if not len(flat):
            return
        for rows in flat.split(max(1, _CHUNK_ELEMENTS // x.shape[-1])):
            part = rows.to(torch.float32)
            kept = self.count / (self.count + part.shape[0])
            self.count += part.shape[0]
            self.mean_absolute.mul_(kept).add_(torch.linalg.vector_norm(part, 1, dim=0), alpha=1 / self.count)
            if self._moments.dim() == 1:
                self._moments.mul_(kept).add_(torch.einsum("ti,ti->i", part, part), alpha=1 / self.count)
            else:
                self._moments.addmm_(part.T, part, beta=kept, alpha=1 / self.count)


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
        "use rtn, magnitude or asvd:alpha=0"
    )


def walk_blocks(
    model: Any, context: CompressionContext, what: str, *, matrices: bool = True
) -> Iterator[list[tuple[str, torch.nn.Linear, Gram]]]:
    """Yield, block by block, every target linear with the statistics of its calibration inputs.

    The caller changes the linears' weights in place, or replaces the modules, before asking for the next block, whose
    inputs then come from the changed block (sequential calibration, as in GPTQ §3). Within a block all linears see
    inputs of the unchanged block. Gradients are off between blocks too.

    The list is emptied when the next block is asked for, so that memory of replaced weights and of statistics is free
    again; a caller should not hold on to either.

    Args:
        model: a causal language model with a list of decoder blocks.
        context: calibration windows, device, windows at once, progress.
        what: name to report progress under.
        matrices: whether ``Gram.matrix`` is needed; without it a pass is cheaper.

    Raises:
        CompressionError: when there is no calibration data, no list of blocks, or an activation is not finite.
    """
    import torch

    if not context.calibration:
        raise CompressionError(f"{what} needs calibration text, got none; give calibration_path, or use rtn")
    prefix, blocks = blocks_of(model)
    with torch.no_grad():
        hidden, arguments = _first_inputs(model, blocks, context)
        for index, block in enumerate(blocks):
            context.progress(what, index, len(blocks))
            kept = [by_block[index] for by_block in arguments]
            start = f"{prefix}.{index}."
            mine = [(name, linear) for name, linear in target_linears(model) if name.startswith(start)]
            grams = _collect(block, [linear for _, linear in mine], hidden, kept, matrices)
            found = [(name, linear, gram) for (name, linear), gram in zip(mine, grams, strict=True)]
            del mine, grams
            _check_finite(found, what)
            give_back_heap()
            yield found
            found.clear()
            give_back_heap()
            if index + 1 < len(blocks):
                for batch, rest in enumerate(kept):
                    hidden[batch] = _run(block, hidden[batch], rest)
        context.progress(what, len(blocks), len(blocks))


_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _AllRecorded(Exception):  # noqa: N818 - a signal, not an error
    """Every block's arguments are known: the norm and the head after the last block need not run."""


def _first_inputs(
    model: Any, blocks: nn.ModuleList, context: CompressionContext
) -> tuple[list[torch.Tensor], list[list[_Arguments]]]:
    """Inputs ``(batch, tokens, hidden)`` of the first block, and what else every block is called with, by batch.

    Masks and rotary embeddings do not depend on the weights of the blocks, so they are recorded without running any:
    for the time of this pass a block only notes what it is called with. Blocks share them in memory.
    """
    hidden: list[torch.Tensor] = []
    arguments: list[list[_Arguments]] = []

    def note(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        x, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        if index == 0:
            hidden.append(x)
            arguments.append([])
        arguments[-1].append((rest, kwargs))
        if index + 1 == len(blocks):
            raise _AllRecorded
        return hidden[-1]

    with _forwards_replaced(blocks, note):
        for batch in _batches(context.calibration or (), context.batch_size):
            try:
                model(input_ids=batch.to(context.device), use_cache=False)
            except _AllRecorded:
                continue
            raise CompressionError(
                f"{type(model).__name__} does not run its {len(blocks)} decoder blocks one after the other, which "
                "calibrated methods need; use rtn, magnitude or asvd:alpha=0"
            )
    return hidden, arguments


@contextmanager
def _forwards_replaced(blocks: nn.ModuleList, note: Any) -> Iterator[None]:
    def noting(index: int) -> Any:
        return lambda *args, **kwargs: note(index, args, kwargs)

    previous = [block.__dict__.get("forward") for block in blocks]
    try:
        for index, block in enumerate(blocks):
            block.forward = noting(index)
        yield
    finally:
        for block, forward in zip(blocks, previous, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward


def _batches(windows: Sequence[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Windows of equal length together: ``(windows, tokens)``. Nothing is padded.

    At most ``size`` windows, and no more than ``128 * size`` tokens unless one window has more: activations of long
    windows would otherwise take more memory than the model.
    """
    import torch

    by_length: dict[int, list[torch.Tensor]] = {}
    for window in windows:
        by_length.setdefault(window.shape[1], []).append(window)
    for group in by_length.values():
        step = max(1, min(size, _TOKENS_A_WINDOW * size // group[0].shape[1]))
        for start in range(0, len(group), step):
            yield torch.cat(group[start : start + step])


def _collect(
    block: nn.Module,
    linears: Sequence[nn.Linear],
    hidden: list[torch.Tensor],
    arguments: list[_Arguments],
    matrices: bool,
) -> list[Gram]:
    """Statistics of every linear's inputs, one object for linears that see the same tensor in every batch."""
    inputs = _Inputs(linears, matrices, share=True)
    try:
        inputs.run(block, hidden, arguments)
    except _SharedNoMore:
        inputs = _Inputs(linears, matrices, share=False)
        inputs.run(block, hidden, arguments)
    return inputs.grams()


class _SharedNoMore(Exception):  # noqa: N818 - a signal, not an error
    """Two linears that saw the same inputs in the first batch did not in a later one."""


class _Inputs:
    """Hooks that collect the inputs of linears.

    In the first batch a linear that is called with the very tensor the linear before it was called with becomes its
    follower. Later batches only check that this stays so.
    """

    def __init__(self, linears: Sequence[nn.Linear], matrices: bool, share: bool) -> None:
        self._linears = linears
        self._matrices = matrices
        self._share = share
        self._grams: dict[int, Gram] = {}
        self._leader: dict[int, int] = {}  # number of a linear to that of the one whose statistics it has
        self._last: tuple[int, Any] | None = None  # leader and input of the call before

    def run(self, block: nn.Module, hidden: list[torch.Tensor], arguments: list[_Arguments]) -> None:
        """Run the block on every batch."""
        handles = [linear.register_forward_pre_hook(self._hook(number)) for number, linear in enumerate(self._linears)]
        try:
            for batch, (x, kept) in enumerate(zip(hidden, arguments, strict=True)):
                self._may_follow = self._share and batch == 0
                self._called: set[int] = set()
                _run(block, x, kept)
                self._last = None
                self._check_followers()
        finally:
            for handle in handles:
                handle.remove()

    def grams(self) -> list[Gram]:
        """By linear; empty statistics where none was seen."""
        return [
            self._grams[self._leader[number]] if number in self._leader else self._new(linear)
            for number, linear in enumerate(self._linears)
        ]

    def _new(self, linear: nn.Linear) -> Gram:
        return Gram(linear.in_features, str(linear.weight.device), matrix=self._matrices)

    def _hook(self, number: int) -> Any:
        def take(linear: Any, args: tuple[Any, ...]) -> None:
            x = args[0]
            before = self._last[0] if self._last is not None and self._last[1] is x else None
            if number not in self._leader:
                self._leader[number] = before if self._may_follow and before is not None else number
            leader = self._leader[number]
            if leader == number:
                if number not in self._grams:
                    self._grams[number] = self._new(linear)
                self._grams[number].add(x)
            elif before != leader or number in self._called:
                raise _SharedNoMore
            self._called.add(number)
            self._last = (leader, x)

        return take

    def _check_followers(self) -> None:
        for number, leader in self._leader.items():
            if (number in self._called) != (leader in self._called):
                raise _SharedNoMore


def _check_finite(found: list[tuple[str, nn.Linear, Gram]], what: str) -> None:
    import torch

    for name, _, gram in found:
        if not bool(torch.isfinite(gram.mean_absolute).all()):
            raise CompressionError(
                f"{what} found NaN or infinite activations at the input of {name}; check the model and the stages "
                "before, or use a float32 or bfloat16 copy of a float16 model"
            )


def _run(block: nn.Module, x: torch.Tensor, kept: _Arguments) -> torch.Tensor:
    rest, kwargs = kept
    result = block(x, *rest, **kwargs)
    output: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return output
