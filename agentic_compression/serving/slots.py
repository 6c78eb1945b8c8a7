"""Slots of a transformers model: one batched cache whose rows are requests, or a cache for each request.

``BatchedSlots`` keeps keys and values of all requests in one tensor a layer. A request's row is written at its own
positions, and the mask hides what lies behind them, so that rows of any length decode in one forward pass and joining
or leaving copies at most one row. It asks of the architecture that keys and values be all that is cached and that
positions be given by ``position_ids``; :func:`open_slots` proves that on the loaded model and otherwise takes
``SeparateSlots``, which runs one request after another.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentic_compression.serving.batching import Portion, SlotModel

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["BatchedSlots", "SeparateSlots", "open_slots"]

_TOLERANCE = 0.05
_BLOCK = 64


def open_slots(model: Any, slots: int, cells: int) -> SlotModel:
    """Batched slots where they give the model's own logits, separate ones elsewhere."""
    if _looks_elsewhere(model.config.get_text_config()):
        return SeparateSlots(model, slots, cells)
    batched = BatchedSlots(model, slots, cells)
    return batched if _agrees(batched, SeparateSlots(model, slots, cells)) else SeparateSlots(model, slots, cells)


def _looks_elsewhere(config: Any) -> bool:
    """Whether a short trial hides what the model does at length: windows, and rotations that the batch decides."""
    context = getattr(config, "max_position_embeddings", None) or 0
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    scaled = str((getattr(config, "rope_parameters", None) or {}).get("rope_type", "default"))
    return any(window and window < context for window in windows) or scaled in {"dynamic", "longrope"}


def _agrees(batched: BatchedSlots, separate: SeparateSlots) -> bool:
    """Whether two sequences of different lengths, read in portions and decoded, give equal logits either way."""
    import numpy as np

    steps = [
        [Portion(0, (1, 2, 3, 4, 5), 0, True), Portion(1, (5, 4, 3), 0, True)],
        [Portion(0, (2,), 5, True), Portion(1, (1, 2), 3, True)],
        [Portion(0, (3,), 6, True), Portion(1, (4,), 5, True)],
        [Portion(0, (5, 6), 7, True), Portion(1, (6, 7, 8), 6, True)],  # of about one length: padded in one pass
    ]
    if batched.slots < 2:
        steps = [[step[0]] for step in steps]
    try:
        found = [batched.run(step) for step in steps]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError):
        return False
    finally:
        batched.clear()
    wanted = [separate.run(step) for step in steps]
    separate.clear()
    return all(
        float(np.abs(one - other).max()) <= _TOLERANCE * max(1.0, float(np.abs(other).max()))
        for one, other in zip(found, wanted, strict=True)
    )


def _logit_options(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


class SeparateSlots:
    """A cache of the model's own kind for each request; any architecture, one forward pass a request and step."""

    batched = False

    def __init__(self, model: Any, slots: int, cells: int) -> None:
        self.slots, self.cells, self._model = slots, cells, model
        self._keep = {"logits_to_keep": 1} if _logit_options(model) else {}
        self._caches: dict[int, Any] = {}

    def cost(self, tokens: Sequence[int]) -> int:
        return sum(tokens)

    def run(self, portions: Sequence[Portion]) -> NDArray[np.float32]:
        import numpy as np
        import torch

        rows = []
        with torch.inference_mode():
            for portion in portions:
                ids = torch.tensor([list(portion.tokens)], device=self._model.device)
                output = self._model(
                    input_ids=ids, past_key_values=self._caches.get(portion.slot), use_cache=True, **self._keep
                )
                self._caches[portion.slot] = output.past_key_values
                if portion.wanted:
                    rows.append(output.logits[0, -1].float().cpu().numpy())
        return np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)

    def free(self, slot: int) -> None:
        self._caches.pop(slot, None)

    def clear(self) -> None:
        """Forget every slot."""
        self._caches.clear()


class BatchedSlots:
    """One cache for all requests. See the module.

    Args:
        model: a causal language model of transformers.
        slots: rows at most.
        cells: rows times width of the cache, at most. The scheduler admits no more than fits, by ``cost``.
    """

    batched = True

    def __init__(self, model: Any, slots: int, cells: int) -> None:
        self.slots, self.cells, self._model = slots, cells, model
        self._limited = _logit_options(model)
        self._cache = _make_cache(int(model.config.get_text_config().num_hidden_layers), slots, cells)
        self._rows: list[int] = []
        self._lengths: dict[int, int] = {}

    def cost(self, tokens: Sequence[int]) -> int:
        """The cache is a rectangle: every row is as wide as the longest."""
        return len(tokens) * max(tokens, default=0)

    @property
    def allocated(self) -> int:
        """Rows times width of what is allocated now, in tokens."""
        return int(self._cache.allocated)

    def run(self, portions: Sequence[Portion]) -> NDArray[np.float32]:
        import numpy as np

        for portion in portions:
            if portion.slot not in self._lengths:
                self._rows.append(portion.slot)
            self._lengths[portion.slot] = portion.start + len(portion.tokens)
        # Rows of a pass are padded to the longest, so that only portions of about one length share a pass.
        groups: dict[int, list[int]] = {}
        for place, portion in enumerate(portions):
            groups.setdefault(len(portion.tokens).bit_length(), []).append(place)
        found: dict[int, NDArray[np.float32]] = {}
        for group in groups.values():
            found.update(self._forward(group, [portions[place] for place in group]))
        rows = [found[place] for place, portion in enumerate(portions) if portion.wanted]
        return np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)

    def _forward(self, places: list[int], portions: list[Portion]) -> dict[int, NDArray[np.float32]]:
        import torch

        model = self._model
        # In the order of their rows, so that those at the beginning of the cache are seen without a copy.
        order = sorted(range(len(portions)), key=lambda index: self._rows.index(portions[index].slot))
        places, portions = [places[index] for index in order], [portions[index] for index in order]
        plan = _Plan(portions, [self._rows.index(portion.slot) for portion in portions], model.device, model.dtype)
        plan.needed = len(self._rows), max(self._lengths.values())
        self._cache.plan = plan
        lasts = sorted({len(portion.tokens) - 1 for portion in portions})
        keep = {"logits_to_keep": torch.tensor(lasts, device=model.device)} if self._limited else {}
        with torch.inference_mode():
            output = model(
                input_ids=plan.ids,
                attention_mask=plan.mask,
                position_ids=plan.positions,
                past_key_values=self._cache,
                use_cache=True,
                **keep,
            )
            columns = [
                lasts.index(len(portion.tokens) - 1) if self._limited else len(portion.tokens) - 1
                for portion in portions
            ]
            logits = output.logits[torch.arange(len(portions)), torch.tensor(columns)].float().cpu().numpy()
        return dict(zip(places, logits, strict=True))

    def free(self, slot: int) -> None:
        """The last row moves into the gap, so that rows in use stay at the beginning."""
        tokens = self._lengths.pop(slot, None)
        if tokens is None:
            return
        gap, last = self._rows.index(slot), len(self._rows) - 1
        if gap != last:
            self._cache.wipe(gap, tokens)
            tokens = self._lengths[self._rows[last]]
            self._cache.move(last, gap, tokens)
            self._rows[gap] = self._rows[last]
        self._cache.wipe(last, tokens)
        self._rows.pop()

    def clear(self) -> None:
        """Forget every slot."""
        for slot in list(self._lengths):
            self.free(slot)


class _Plan:
    """Where the tokens of one forward pass go: ids and positions ``(rows, tokens)``, cells, mask."""

    def __init__(self, portions: list[Portion], rows: list[int], device: Any, dtype: Any) -> None:
        import torch

        longest = max(len(portion.tokens) for portion in portions)
        self.width = max(portion.start + len(portion.tokens) for portion in portions)
        self.rows = rows
        self.needed = (max(rows) + 1, self.width)
        """Rows and width of all that is held, what is not in this pass included."""
        self.is_prefix = rows == list(range(len(rows)))
        padded = [[*portion.tokens, *[0] * (longest - len(portion.tokens))] for portion in portions]
        self.ids = torch.tensor(padded, device=device)
        starts = torch.tensor([portion.start for portion in portions])
        lengths = torch.tensor([len(portion.tokens) for portion in portions])
        steps = torch.arange(longest)
        positions = starts[:, None] + steps[None, :]
        self.valid = None if int(lengths.min()) == longest else (steps[None, :] < lengths[:, None]).flatten()
        self.places = positions  # of the cells in their rows
        # Padding may reach past the context, where a model with learned positions has none.
        self.positions = torch.minimum(positions, (starts + lengths - 1)[:, None]).to(device)
        seen = torch.arange(self.width)[None, None, :] <= positions[:, :, None]
        hidden = torch.finfo(dtype).min
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, hidden)
        self.mask = mask[:, None].to(device)
        self._cells: tuple[int, torch.Tensor] | None = None

    def cells(self, capacity: int, device: Any) -> torch.Tensor:
        """Flat places ``row * capacity + position`` of all tokens but the padding."""
        import torch

        if self._cells is None or self._cells[0] != capacity:  # every layer asks, and the answer is the same
            flat = (torch.tensor(self.rows)[:, None] * capacity + self.places).flatten()
            self._cells = (capacity, (flat if self.valid is None else flat[self.valid]).to(device))
        return self._cells[1]


def cache_shape(needed: tuple[int, int], held: tuple[int, int], slots: int, cells: int) -> tuple[int, int]:
    """Rows and width of a cache that has become too small: with room to grow, but never more than ``cells``.

    Args:
        needed: rows and width in use; their product is within ``cells``.
        held: rows and width until now; kept where there is room, given up where there is not.
        slots: rows, at most.
        cells: rows times width, at most.
    """
    rows, width = needed
    wide = max(held[1], -(-width * 5 // 4 // _BLOCK) * _BLOCK)
    wide = max(width, min(wide, cells // rows))
    tall = max(held[0], min(slots, 1 << (rows - 1).bit_length()))
    return max(rows, min(tall, cells // wide)), wide


def _make_cache(layers: int, slots: int, cells_allowed: int) -> Any:
    """A transformers cache with ``plan`` and ``move``; its class is made here because torch is imported late."""
    import torch
    from transformers.cache_utils import Cache, CacheLayerMixin

    class SlotLayer(CacheLayerMixin):
        """Keys and values of one layer, ``(rows, cells, heads, dim)``."""

        is_sliding = False
        is_croppable = False

        def __init__(self) -> None:
            super().__init__()
            self.plan: Any = None

        def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
            self._grow(key_states, value_states)
            self.is_initialized = True

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            plan = self.plan
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            elif self.keys.shape[0] <= max(plan.rows) or self.keys.shape[1] < plan.width:
                self._grow(key_states, value_states)
            cells = plan.cells(self.keys.shape[1], key_states.device)
            found = []
            for store, new in ((self.keys, key_states), (self.values, value_states)):
                flat = new.transpose(1, 2).reshape(-1, new.shape[1], new.shape[3])
                store.view(-1, *store.shape[2:]).index_copy_(0, cells, flat if plan.valid is None else flat[plan.valid])
                rows = store[: len(plan.rows), : plan.width] if plan.is_prefix else store[plan.rows, : plan.width]
                found.append(rows.transpose(1, 2))
            return found[0], found[1]

        def _grow(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
            """Filled with zeros, because a hidden cell that is not a number would spoil the sum."""
            held = (self.keys.shape[0], self.keys.shape[1]) if self.is_initialized else (0, 0)
            rows, cells = cache_shape(self.plan.needed, held, slots, cells_allowed)
            kept = min(rows, held[0]), min(cells, held[1])
            made = [
                torch.zeros(rows, cells, states.shape[1], states.shape[3], dtype=states.dtype, device=states.device)
                for states in (key_states, value_states)
            ]  # both before either is taken, or a lack of memory in between would leave the layer in two shapes
            if self.is_initialized:
                for store, old in zip(made, (self.keys, self.values), strict=True):
                    store[: kept[0], : kept[1]] = old[: kept[0], : kept[1]]
            self.keys: torch.Tensor = made[0]
            self.values: torch.Tensor = made[1]

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.plan.width, 0

        def get_seq_length(self) -> int:
            return int(self.plan.width) - int(self.plan.ids.shape[1])

        def get_max_length(self) -> int:
            return -1

    class SlotCache(Cache):
        """All layers."""

        def __init__(self) -> None:
            super().__init__(layers=[SlotLayer() for _ in range(layers)])
            self._plan: Any = None

        @property
        def plan(self) -> Any:
            return self._plan

        @plan.setter
        def plan(self, plan: Any) -> None:
            self._plan = plan
            for layer in self.layers:
                layer.plan = plan

        @property
        def allocated(self) -> int:
            """Tokens that the widest layer has room for."""
            made = [layer.keys for layer in self.layers if layer.is_initialized]
            return max((keys.shape[0] * keys.shape[1] for keys in made), default=0)

        def move(self, source: int, target: int, tokens: int) -> None:
            """Copy the first tokens of a row into another row; rows that were never stored have none."""
            with torch.inference_mode():
                for layer in self.layers:
                    if layer.is_initialized and max(source, target) < layer.keys.shape[0]:
                        layer.keys[target, :tokens] = layer.keys[source, :tokens]
                        layer.values[target, :tokens] = layer.values[source, :tokens]

        def wipe(self, row: int, tokens: int) -> None:
            """Zero the first tokens of a row: what is not a number there would reach whoever uses the row next."""
            with torch.inference_mode():
                for layer in self.layers:
                    if layer.is_initialized and row < layer.keys.shape[0]:
                        layer.keys[row, :tokens] = 0
                        layer.values[row, :tokens] = 0

    return SlotCache()
