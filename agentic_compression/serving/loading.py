"""Loading a checkpoint folder into the slots of the engine that its files ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.errors import ModelError
from agentic_compression.runtimes.select import runtime_kind, runtime_version
from agentic_compression.runtimes.tokenizer import end_ids, load_tokenizer
from agentic_compression.serving.batching import SlotModel
from agentic_compression.serving.embedding import OpenEmbedder, llama_embedder, torch_embedder
from agentic_compression.serving.engine import EngineOptions

__all__ = ["LoadedModel", "cache_cells", "load_model"]

_CELL_BLOCK = 256
_CELLS = 32_768
_CELLS_A_SLOT = 1024


@dataclass(frozen=True)
class LoadedModel:
    """A model with slots, its tokenizer and what else requests need."""

    engine: str
    device: str
    tokenizer: Any
    ends: frozenset[int]
    context_length: int
    weights_bytes: int
    slots: SlotModel
    batched: bool
    embedder: OpenEmbedder

    @property
    def usable_context(self) -> int:
        """Tokens of a prompt and its answer: what the model was made for, or the cache where that is less."""
        return min(self.context_length, self.slots.cells)

    def describe(self, has_template: bool) -> dict[str, Any]:
        """The fields of ``EngineInfo``."""
        return {
            "engine": self.engine,
            "device": self.device,
            "context_length": self.usable_context,
            "weights_bytes": self.weights_bytes,
            "slots": self.slots.slots,
            "batched": self.batched,
            "chat_template": "tokenizer" if has_template else "default",
            "pid": os.getpid(),
        }


def cache_cells(options: EngineOptions, context_length: int) -> int:
    """Tokens that all slots hold together, in whole blocks: as many as asked for, or one whole context and more."""
    whole = -(-context_length // _CELL_BLOCK) * _CELL_BLOCK
    tokens = options.cache_tokens or min(options.slots * whole, max(whole + options.slots * _CELLS_A_SLOT, _CELLS))
    return -(-tokens // _CELL_BLOCK) * _CELL_BLOCK


def load_model(folder: Path, options: EngineOptions) -> LoadedModel:
    """Load a checkpoint of ours, a plain Hugging Face folder, or a folder with a GGUF file.

    Raises:
        ModelError: when the folder is no model or has no tokenizer.
        UnavailableError: when the engine is not installed or cannot use the device.
        MemoryError: when it does not fit.
    """
    if not folder.is_dir():
        raise ModelError(f"checkpoint folder {folder} does not exist; check the path")
    return _load_llama(folder, options) if runtime_kind(folder) == "llama.cpp" else _load_torch(folder, options)


def _load_torch(folder: Path, options: EngineOptions) -> LoadedModel:
    from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
    from agentic_compression.serving.slots import open_slots

    runtime = TransformersRuntime(folder, device=options.device, threads=options.threads)
    if len(runtime.tokenizer) > runtime.vocabulary:
        raise ModelError(
            f"{folder} must have a token for each of the tokenizer's {len(runtime.tokenizer)}, "
            f"got {runtime.vocabulary}; model and tokenizer do not belong together"
        )
    slots = open_slots(runtime.model, options.slots, cache_cells(options, runtime.context_length))
    return LoadedModel(
        engine=runtime_version("transformers"),
        device=options.device,
        tokenizer=runtime.tokenizer,
        ends=end_ids(runtime.tokenizer, folder),
        context_length=runtime.context_length,
        weights_bytes=runtime.weights_bytes,
        slots=slots,
        batched=slots.batched,
        embedder=torch_embedder(runtime.model, in_pieces=slots.batched),
    )


def _load_llama(folder: Path, options: EngineOptions) -> LoadedModel:
    from agentic_compression.serving.llama_slots import LlamaSlots, open_llama_model

    tokenizer = load_tokenizer(folder)
    model = open_llama_model(folder, options.device)
    if len(tokenizer) > model.vocabulary:
        raise ModelError(
            f"{model.path} must have a token for each of the tokenizer's {len(tokenizer)}, got {model.vocabulary}; "
            "file and tokenizer are not of one model"
        )
    context = model.context_length or 2048
    slots = LlamaSlots(model, options.slots, cache_cells(options, context), options.threads)
    return LoadedModel(
        engine=runtime_version("llama.cpp"),
        device=options.device,
        tokenizer=tokenizer,
        ends=end_ids(tokenizer, folder),
        context_length=context,
        weights_bytes=model.weights_bytes,
        slots=slots,
        batched=True,
        embedder=llama_embedder(model, options.threads),
    )
