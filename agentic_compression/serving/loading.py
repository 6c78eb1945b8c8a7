"""Loading a checkpoint folder into the engine that its files ask for, or into the one named."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agentic_compression.errors import ConfigurationError, ModelError
from agentic_compression.runtimes.select import runtime_kind, runtime_version
from agentic_compression.runtimes.tokenizer import end_ids, load_tokenizer
from agentic_compression.serving.batching import Emit, JobScheduler, Scheduler, SlotModel
from agentic_compression.serving.embedding import OpenEmbedder, llama_embedder, torch_embedder
from agentic_compression.serving.engine import EngineOptions
from agentic_compression.serving.llama_slots import whole_blocks

__all__ = ["LoadedModel", "LoadedSlots", "cache_cells", "load_engine", "load_model"]

_CELLS = 32_768


OpenScheduler = Callable[[Emit, int], JobScheduler]
"""Takes where to tell what comes of jobs, and how many may wait."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that answers, its tokenizer and what else requests need.

    Attributes:
        places: answers at once.
        cells: tokens that one request may hold at most, where that may be less than the context.
        embedder: None where the engine cannot embed.
        open_scheduler: of the jobs of this model; called once.
    """

    engine: str
    device: str
    tokenizer: Any
    ends: frozenset[int]
    context_length: int
    weights_bytes: int
    places: int
    cells: int
    batched: bool
    embedder: OpenEmbedder | None
    open_scheduler: OpenScheduler

    @property
    def usable_context(self) -> int:
        """Tokens of a prompt and its answer: what the model was made for, or the cache where that is less."""
        return min(self.context_length, self.cells)

    def describe(self, has_template: bool) -> dict[str, Any]:
        """The fields of ``EngineInfo``."""
        return {
            "engine": self.engine,
            "device": self.device,
            "context_length": self.usable_context,
            "weights_bytes": self.weights_bytes,
            "slots": self.places,
            "batched": self.batched,
            "chat_template": "tokenizer" if has_template else "default",
            "pid": os.getpid(),
        }


@dataclass(frozen=True, kw_only=True)
class LoadedSlots(LoadedModel):
    """A model with slots."""

    slots: SlotModel


def cache_cells(options: EngineOptions, context_length: int) -> int:
    """Tokens that all slots hold together, in whole blocks: as many as asked for, or one whole context or more."""
    whole = whole_blocks(context_length)
    return whole_blocks(options.cache_tokens or min(options.slots * whole, max(whole, _CELLS)))


def load_engine(folder: Path, options: EngineOptions) -> LoadedModel:
    """Load a folder into the engine that the options name, or that its files ask for.

    Raises:
        ConfigurationError: when the engine named cannot read the folder's files.
        ModelError: when the folder is no model or has no tokenizer.
        UnavailableError: when the engine is not installed or cannot use the device.
        MemoryError: when it does not fit.
    """
    _require_folder(folder)
    own = runtime_kind(folder)
    if options.engine not in ("auto", own) and "llama.cpp" in (options.engine, own):
        raise ConfigurationError(
            f"{folder} must be run by {own}, got {options.engine}; set ACF_SERVE_ENGINE to auto or {own}"
        )
    if options.engine == "vllm":
        from agentic_compression.serving.vllm_engine import open_vllm

        return open_vllm(folder, options)
    return load_model(folder, options)


def load_model(folder: Path, options: EngineOptions) -> LoadedSlots:
    """Load a checkpoint of ours, a plain Hugging Face folder, or a folder with a GGUF file, into slots.

    Raises:
        ModelError: when the folder is no model or has no tokenizer.
        UnavailableError: when the engine is not installed or cannot use the device.
        MemoryError: when it does not fit.
    """
    _require_folder(folder)
    return _load_llama(folder, options) if runtime_kind(folder) == "llama.cpp" else _load_torch(folder, options)


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"checkpoint folder {folder} does not exist; check the path")


def _load_torch(folder: Path, options: EngineOptions) -> LoadedSlots:
    from agentic_compression.runtimes.transformers_runtime import TransformersRuntime
    from agentic_compression.serving.slots import open_slots

    runtime = TransformersRuntime(folder, device=options.device, threads=options.threads)
    if len(runtime.tokenizer) > runtime.vocabulary:
        raise ModelError(
            f"{folder} must have a token for each of the tokenizer's {len(runtime.tokenizer)}, "
            f"got {runtime.vocabulary}; model and tokenizer do not belong together"
        )
    slots = open_slots(runtime.model, options.slots, cache_cells(options, runtime.context_length))
    return LoadedSlots(
        engine=runtime_version("transformers"),
        device=options.device,
        tokenizer=runtime.tokenizer,
        ends=end_ids(runtime.tokenizer, folder),
        context_length=runtime.context_length,
        weights_bytes=runtime.weights_bytes,
        slots=slots,
        places=slots.slots,
        cells=slots.cells,
        batched=slots.batched,
        open_scheduler=partial(Scheduler, slots, runtime.tokenizer),
        embedder=torch_embedder(runtime.model, in_pieces=slots.batched),
    )


def _load_llama(folder: Path, options: EngineOptions) -> LoadedSlots:
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
    return LoadedSlots(
        engine=runtime_version("llama.cpp"),
        device=options.device,
        tokenizer=tokenizer,
        ends=end_ids(tokenizer, folder),
        context_length=context,
        weights_bytes=model.weights_bytes,
        slots=slots,
        places=slots.slots,
        cells=slots.cells,
        batched=True,
        open_scheduler=partial(Scheduler, slots, tokenizer),
        embedder=llama_embedder(model, options.threads),
    )
