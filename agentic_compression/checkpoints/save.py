"""Writing a checkpoint folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.checkpoints.folders import GGUF_NAME, checkpoint_ref, new_folder
from agentic_compression.checkpoints.manifest import (
    MANIFEST_NAME,
    AppliedStage,
    BitmaskModule,
    CheckpointManifest,
    ModuleRepresentation,
)
from agentic_compression.checkpoints.stored import format_of_kind, stored_kind
from agentic_compression.records import BASELINE, CheckpointRef, Strategy
from agentic_compression.resident_memory import give_back_heap
from agentic_compression.storage import write_record

if TYPE_CHECKING:
    import torch
    from torch import nn

    from agentic_compression.checkpoints.gguf_plan import GgufPlan

__all__ = ["ACF_QUANT_METHOD", "CheckpointOrigin", "save_checkpoint"]

ACF_QUANT_METHOD = "acf"


@dataclass(frozen=True)
class CheckpointOrigin:
    """Where a checkpoint comes from; goes into its manifest."""

    base_digest: str = ""
    strategy: Strategy = BASELINE
    seed: int = 0
    stages: tuple[AppliedStage, ...] = field(default=())


def save_checkpoint(
    model: nn.Module, tokenizer: Any, path: Path, origin: CheckpointOrigin, *, gguf: GgufPlan | None = None
) -> CheckpointRef:
    """Write a model as a checkpoint folder, whole or not at all.

    Linears are stored as they are in the model, each kind in its own format (:mod:`stored`), and a dense linear with at
    least 30 % zeros as bitmask and values where that is smaller. When all that is not dense has one standard format,
    any Hugging Face runtime can load the folder. Otherwise the weights are in ``acf_model.safetensors`` and
    ``config.json`` names the quantization method ``acf``, so that other runtimes refuse the folder: transformers would
    fill the weights it does not find at random, with only a warning.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer, or None to write none.
        path: the folder to create; it must not exist.
        origin: base model, strategy and stages.
        gguf: write ``model.gguf`` for llama.cpp this way instead of safetensors.

    Returns:
        A reference whose ``size_bytes`` counts weights, config, tokenizer and manifest.
    """
    from agentic_compression.checkpoints.tensor_files import write_tensors

    if gguf is not None:
        return _save_gguf(model, tokenizer, path, origin, gguf)
    modules = _representations(model)
    aliases = _aliases(model)
    standard = _standard(modules)
    loads_elsewhere = standard is not None and not any(
        getattr(module, "only_here", False) for module in model.modules()
    )
    loads_with = ("acf", "transformers") if loads_elsewhere else ("acf",)
    manifest = CheckpointManifest(
        base_digest=origin.base_digest,
        strategy=origin.strategy,
        seed=origin.seed,
        stages=origin.stages,
        modules=modules,
        aliases=aliases,
        loads_with=loads_with,
    )
    with new_folder(path) as folder:
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_tensors(_groups(model, modules, aliases), folder, "acf_model" if standard is None else "model")
        _write_configs(model, modules, standard, folder)
        write_record(folder / MANIFEST_NAME, manifest)
    return checkpoint_ref(path, origin.strategy.key, loads_with)


def _save_gguf(model: nn.Module, tokenizer: Any, path: Path, origin: CheckpointOrigin, plan: GgufPlan) -> CheckpointRef:
    from agentic_compression.checkpoints.gguf_file import write_gguf

    loads_with = ("llama.cpp",)
    with new_folder(path) as folder:
        notes = write_gguf(model, tokenizer, folder / GGUF_NAME, plan)
        tokenizer.save_pretrained(folder)
        _write_configs(model, {}, "dense", folder)
        manifest = CheckpointManifest(
            base_digest=origin.base_digest,
            strategy=origin.strategy,
            seed=origin.seed,
            stages=_with_notes(origin.stages, notes),
            loads_with=loads_with,
        )
        write_record(folder / MANIFEST_NAME, manifest)
    return checkpoint_ref(path, origin.strategy.key, loads_with)


def _with_notes(stages: tuple[AppliedStage, ...], notes: tuple[str, ...]) -> tuple[AppliedStage, ...]:
    """The stages, with what writing found added to the last one's notes."""
    if not stages or not notes:
        return stages
    last = stages[-1].model_copy(update={"notes": (*stages[-1].notes, *notes)})
    return (*stages[:-1], last)


def _representations(model: nn.Module) -> dict[str, ModuleRepresentation]:
    """How every module that is not stored dense is stored."""
    from torch import nn

    from agentic_compression.checkpoints.bitmask import pays_off, sparsity_of

    modules: dict[str, ModuleRepresentation] = {}
    tied = {id(parameter) for parameter in _embedding_weights(model)}
    for name, module in model.named_modules():
        layer: Any = module
        if stored_kind(module) is not None:
            modules[name] = layer.representation
        elif isinstance(module, nn.Linear) and id(module.weight) not in tied and pays_off(module.weight):
            modules[name] = BitmaskModule(sparsity=round(sparsity_of(module.weight), 6))
    return modules


def _groups(
    model: nn.Module, modules: dict[str, ModuleRepresentation], aliases: dict[str, str]
) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors to store, by their stored name, one module at a time; each shared tensor once."""
    from agentic_compression.checkpoints.bitmask import compress_bitmask

    def ready(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().cpu().contiguous()}

    for name, module in model.named_modules():
        layer: Any = module
        kind = stored_kind(module)
        own = dict(module.named_parameters(prefix=name, recurse=False)) | _persistent_buffers(module, name)
        stored: dict[str, torch.Tensor] = {}
        if kind is not None:
            own = {key: tensor for key, tensor in own.items() if key == f"{name}.bias"}
            stored = layer.stored_tensors()
        elif name in modules:
            stored = compress_bitmask(own.pop(f"{name}.weight"))
        group = {f"{name}.{key}": tensor.detach().cpu().contiguous() for key, tensor in stored.items()}
        for key, tensor in own.items():
            if key not in aliases:
                group |= ready(key, tensor)
        del stored, own
        if group:
            give_back_heap()  # what was needed to make it lies free between what is kept
            yield group


def _persistent_buffers(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.{key}" if prefix else key: buffer
        for key, buffer in module._buffers.items()
        if buffer is not None and key not in module._non_persistent_buffers_set
    }


def _standard(modules: dict[str, ModuleRepresentation]) -> str | None:
    """The one standard format of all modules that are not dense, ``dense`` when there are none, None when mixed."""
    names = {format_of_kind(module.kind).standard for module in modules.values()}
    return next(iter(names), "dense") if len(names) <= 1 else None


def _embedding_weights(model: nn.Module) -> list[torch.Tensor]:
    getter: Any = getattr(model, "get_input_embeddings", None)
    embedding = getter() if getter else None
    return [] if embedding is None else [embedding.weight]


def _tied_to(model: nn.Module) -> dict[str, str]:
    """Tied parameter name to the name it is tied to, as transformers declares them."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _aliases(model: nn.Module) -> dict[str, str]:
    """Of every tensor stored under several names, all but one with the one that stays.

    The name that others are tied to stays, else the first.
    """
    tied = _tied_to(model)
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        named |= _persistent_buffers(module, name)
    owner: dict[tuple[int, tuple[int, ...]], str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(named, key=lambda name: (name in tied, name)):
        key = (named[name].data_ptr(), tuple(named[name].shape))
        if named[name].numel() and key in owner:
            aliases[name] = owner[key]
        else:
            owner[key] = name
    return aliases


def _write_configs(
    model: nn.Module, modules: dict[str, ModuleRepresentation], standard: str | None, folder: Path
) -> None:
    from torch import nn

    settings: Any = model.config
    config: dict[str, Any] = json.loads(settings.to_json_string(use_diff=True))
    config.pop("quantization_config", None)
    config["architectures"] = [type(model).__name__]
    dtype: Any = model.dtype
    config["dtype"] = str(dtype).removeprefix("torch.")
    if standard is None:
        config["quantization_config"] = {"quant_method": ACF_QUANT_METHOD}
    elif modules:
        make = format_of_kind(next(iter(modules.values())).kind).config
        dense = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if make is not None:
            config["quantization_config"] = make(dict(modules), dense)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)
