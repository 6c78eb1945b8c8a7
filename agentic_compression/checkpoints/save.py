"""Writing a checkpoint folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.checkpoints.folders import checkpoint_ref, new_folder
from agentic_compression.checkpoints.manifest import (
    MANIFEST_NAME,
    AppliedStage,
    BitmaskModule,
    CheckpointManifest,
    DenseFactor,
    LowRankModule,
    ModuleRepresentation,
    PackedModule,
)
from agentic_compression.records import BASELINE, CheckpointRef, Strategy
from agentic_compression.storage import write_record

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ACF_QUANT_METHOD", "CheckpointOrigin", "save_checkpoint"]

ACF_QUANT_METHOD = "acf"


@dataclass(frozen=True)
class CheckpointOrigin:
    """Where a checkpoint comes from; goes into its manifest."""

    base_digest: str = ""
    strategy: Strategy = BASELINE
    seed: int = 0
    stages: tuple[AppliedStage, ...] = field(default=())


def save_checkpoint(model: nn.Module, tokenizer: Any, path: Path, origin: CheckpointOrigin) -> CheckpointRef:
    """Write a model as a checkpoint folder, whole or not at all.

    Linears are stored as they are in the model: ``PackedLinear`` in compressed-tensors' ``pack-quantized`` format,
    ``LowRankLinear`` as its two factors, and a dense linear with at least 30 % zeros as bitmask and values where that
    is smaller. With only dense and packed modules any Hugging Face runtime can load the folder. Otherwise the weights
    are in ``acf_model.safetensors`` and ``config.json`` names the quantization method ``acf``, so that other runtimes
    refuse the folder: transformers would fill the weights it does not find at random, with only a warning.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer, or None to write none.
        path: the folder to create; it must not exist.
        origin: base model, strategy and stages.

    Returns:
        A reference whose ``size_bytes`` counts weights, config, tokenizer and manifest.
    """
    from agentic_compression.checkpoints.tensor_files import write_tensors

    tensors, modules = _gather(model)
    tensors, aliases = _drop_shared(tensors, _tied_to(model))
    standard = all(isinstance(module, PackedModule) for module in modules.values())
    loads_with = ("acf", "transformers") if standard else ("acf",)
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
        write_tensors(tensors, folder, "model" if standard else "acf_model")
        _write_configs(model, modules, standard, folder)
        write_record(folder / MANIFEST_NAME, manifest)
    return checkpoint_ref(path, origin.strategy.key, loads_with)


def _gather(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, ModuleRepresentation]]:
    """All tensors to store, by their stored name, and the representation of every module that is not dense."""
    from torch import nn

    from agentic_compression.checkpoints.bitmask import compress_bitmask, pays_off
    from agentic_compression.checkpoints.low_rank_linear import LowRankLinear
    from agentic_compression.checkpoints.packed_linear import PackedLinear
    from agentic_compression.checkpoints.quantized import pack

    tensors: dict[str, torch.Tensor] = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    modules: dict[str, ModuleRepresentation] = {}
    tied = {id(parameter) for parameter in _embedding_weights(model)}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            modules[name] = _low_rank(module)
        elif isinstance(module, PackedLinear):
            quantized = module.quantized()
            tensors.update({f"{name}.{key}": value for key, value in pack(quantized).items()})
            if name.rpartition(".")[0] not in modules:  # the factors of a low-rank pair are listed with the pair
                modules[name] = quantized.representation
        elif isinstance(module, nn.Linear) and id(module.weight) not in tied and pays_off(module.weight):
            stored = compress_bitmask(tensors.pop(f"{name}.weight"))
            tensors.update({f"{name}.{key}": value for key, value in stored.items()})
            sparsity = 1 - stored["weight_values"].numel() / module.weight.numel()
            modules[name] = BitmaskModule(sparsity=round(sparsity, 6))
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, modules


def _low_rank(module: Any) -> LowRankModule:
    from agentic_compression.checkpoints.packed_linear import PackedLinear

    def of(part: Any) -> DenseFactor | PackedModule:
        return part.quantized().representation if isinstance(part, PackedLinear) else DenseFactor()

    return LowRankModule(rank=int(module.down.out_features), down=of(module.down), up=of(module.up))


def _embedding_weights(model: nn.Module) -> list[torch.Tensor]:
    getter: Any = getattr(model, "get_input_embeddings", None)
    embedding = getter() if getter else None
    return [] if embedding is None else [embedding.weight]


def _tied_to(model: nn.Module) -> dict[str, str]:
    """Tied parameter name to the name it is tied to, as transformers declares them."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _drop_shared(
    tensors: dict[str, torch.Tensor], tied: dict[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Keep one name of every tensor stored under several: the one others are tied to, else the first."""
    kept: dict[str, torch.Tensor] = {}
    owner: dict[tuple[int, tuple[int, ...]], str] = {}
    aliases: dict[str, str] = {}
    for name in sorted(tensors, key=lambda name: (name in tied, name)):
        tensor = tensors[name]
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in owner:
            aliases[name] = owner[key]
        else:
            owner[key] = name
            kept[name] = tensor
    return kept, aliases


def _write_configs(model: nn.Module, modules: dict[str, ModuleRepresentation], standard: bool, folder: Path) -> None:
    from torch import nn

    from agentic_compression.checkpoints.quantized import quantization_config

    settings: Any = model.config
    config: dict[str, Any] = json.loads(settings.to_json_string(use_diff=True))
    config.pop("quantization_config", None)
    config["architectures"] = [type(model).__name__]
    dtype: Any = model.dtype
    config["dtype"] = str(dtype).removeprefix("torch.")
    packed = {name: module for name, module in modules.items() if isinstance(module, PackedModule)}
    if not standard:
        config["quantization_config"] = {"quant_method": ACF_QUANT_METHOD}
    elif packed:
        dense = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        config["quantization_config"] = quantization_config(packed, dense)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)
