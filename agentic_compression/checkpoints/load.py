"""Reading a checkpoint folder into a model that runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.checkpoints.folders import GGUF_NAME, weight_files
from agentic_compression.checkpoints.manifest import (
    CheckpointManifest,
    ModuleRepresentation,
    read_manifest,
)
from agentic_compression.checkpoints.stored import format_of_kind
from agentic_compression.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["LoadedCheckpoint", "load_checkpoint", "preload_runtime"]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model ready to run.

    Attributes:
        model: in evaluation mode, on the device asked for.
        tokenizer: None when the folder holds none.
        manifest: None for a plain Hugging Face folder.
        weights_bytes: bytes of parameters and buffers as loaded, each shared tensor once.
    """

    model: Any
    tokenizer: Any
    manifest: CheckpointManifest | None
    weights_bytes: int


def load_checkpoint(
    path: str | Path, *, device: str = "cpu", dtype: torch.dtype | str | None = None, trust_remote_code: bool = False
) -> LoadedCheckpoint:
    """Load one of our checkpoints, or a plain Hugging Face folder.

    Packed layers stay packed (see :class:`~agentic_compression.checkpoints.packed_linear.PackedLinear`) and no dense
    copy of them is ever made, so that the peak memory of loading is that of the packed weights.

    Args:
        path: a local folder.
        device: where to put the model.
        dtype: of activations and dense weights, ``torch.float32`` or its name; as stored when None.
        trust_remote_code: run model code that comes with a plain folder; never done for our own checkpoints.

    Raises:
        ModelError: when the folder is no model, misses tensors or holds unknown ones.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ModelError(f"a checkpoint is a folder with config.json, got {folder}; check the path")
    manifest = read_manifest(folder)
    if (folder / GGUF_NAME).is_file():
        raise ModelError(
            f"{folder} holds {GGUF_NAME}, which llama.cpp runs, not torch; open it with runtimes.open_runtime"
        )
    wanted = _read_dtype(dtype)
    if manifest is None:
        from agentic_compression.checkpoints.plain_folder import load_plain_folder

        model = load_plain_folder(folder, wanted, trust_remote_code=trust_remote_code)
    else:
        model = _load_own(folder, manifest, wanted)
    model = model.to(device).eval()
    return LoadedCheckpoint(
        model=model,
        tokenizer=_load_tokenizer(folder, trust_remote_code),
        manifest=manifest,
        weights_bytes=_weights_bytes(model),
    )


def preload_runtime() -> None:
    """Import what loading needs and probe the 4-bit kernels.

    Called before a process's memory is first read, it keeps some 15 MB of library code, the same for every checkpoint,
    out of the growth that is then counted for one.
    """
    import accelerate  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401

    from agentic_compression.checkpoints import (  # noqa: F401
        bitmask,
        fp8_linear,
        int8_linear,
        low_rank_linear,
        nf4_linear,
        packed_linear,
        tensor_files,
    )
    from agentic_compression.checkpoints.int4_kernel import kernel_block_rows
    from agentic_compression.checkpoints.nf4_kernel import nf4_kernel

    kernel_block_rows()
    nf4_kernel()


def _read_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    import torch

    if not isinstance(dtype, str):
        return dtype
    allowed = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in allowed:
        raise ModelError(f"dtype must be one of {', '.join(allowed)}, got {dtype!r}")
    return allowed[dtype]


def _load_tokenizer(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except MemoryError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception for a file it cannot parse
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(f"the tokenizer of {folder} must be readable, got {reason}; copy it again") from error


def _load_own(folder: Path, manifest: CheckpointManifest, dtype: torch.dtype | None) -> Any:
    import torch

    config = _read_config(folder)
    wanted = dtype or config.dtype or torch.float32
    model = _empty_model(config, wanted)
    try:
        filler = _Filler(model, manifest, convert=dtype is not None)
        for file in weight_files(folder):
            filler.read(file)
        filler.finish(folder)
    except (AttributeError, KeyError, ValueError, RuntimeError) as error:
        if "can't allocate memory" in str(error):
            raise
        raise ModelError(f"{folder} and its manifest do not belong together: {error}; build it again") from error
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _read_config(folder: Path) -> Any:
    from transformers import AutoConfig

    values = json.loads((folder / "config.json").read_text())
    values.pop("quantization_config", None)
    try:
        return AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError) as error:
        raise ModelError(f"{folder}/config.json has no model type that transformers knows: {error}") from error


def _empty_model(config: Any, dtype: torch.dtype) -> Any:
    """The architecture with parameters on the meta device and real buffers (rotary frequencies)."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


class _Filler:
    """Puts stored tensors into an empty model, one module at a time."""

    def __init__(self, model: nn.Module, manifest: CheckpointManifest, convert: bool) -> None:
        self._model = model
        self._convert = convert
        self._manifest = manifest
        self._leaves: dict[str, ModuleRepresentation] = {}
        self._parts: dict[str, dict[str, torch.Tensor]] = {}
        # Outer before inner: a low-rank pair must be there before its factors can be replaced.
        for name, representation in sorted(manifest.modules.items()):
            form = format_of_kind(representation.kind)
            if form.tensor_names(representation):
                self._leaves[name] = representation
            else:
                linear: Any = model.get_submodule(name)
                model.set_submodule(name, form.restore({}, representation, linear))

    def read(self, file: Path) -> None:
        """Take every tensor of one file."""
        from agentic_compression.checkpoints.tensor_files import TensorFile

        with TensorFile(file) as source:
            # Grouped by module, so that the parts of one packed weight are held only until it is laid out.
            for name in sorted(source.names):
                owner = self._owner(name)
                if owner is None:
                    self._assign(name, source.read(name))
                else:
                    self._take(owner, name.removeprefix(f"{owner}."), source.read(name))

    def _owner(self, name: str) -> str | None:
        """The compressed layer that this tensor is a part of; its bias is a tensor like any other."""
        owner, _, leaf = name.rpartition(".")
        while owner:
            if owner in self._leaves:
                return (
                    owner
                    if leaf in format_of_kind(self._leaves[owner].kind).tensor_names(self._leaves[owner])
                    else None
                )
            owner, _, last = owner.rpartition(".")
            leaf = f"{last}.{leaf}"
        return None

    def finish(self, folder: Path) -> None:
        """Tie shared tensors and check that nothing is missing.

        Raises:
            ModelError: naming the first tensor that is missing.
        """
        for name, source in self._manifest.aliases.items():
            owner, _, leaf = name.rpartition(".")
            source_owner, _, source_leaf = source.rpartition(".")
            setattr(
                self._model.get_submodule(owner), leaf, getattr(self._model.get_submodule(source_owner), source_leaf)
            )
        # Only for what no file holds: a head of its own stays, though the config says that it is tied.
        tie: Any = getattr(self._model, "tie_weights", None)
        if tie is not None and any(parameter.is_meta for parameter in self._model.parameters()):
            tie()
        missing = [name for name, parameter in self._model.named_parameters() if parameter.is_meta]
        missing += [f"{owner}.*" for owner in self._parts]
        if missing:
            raise ModelError(f"{folder} misses {len(missing)} tensors, the first is {missing[0]}; build it again")

    def _take(self, owner: str, leaf: str, tensor: torch.Tensor) -> None:
        """Keep one part of a layer, and build the layer once all are there."""
        from torch import nn

        parts = self._parts.setdefault(owner, {})
        parts[leaf] = tensor
        representation = self._leaves[owner]
        form = format_of_kind(representation.kind)
        if len(parts) < len(form.tensor_names(representation)):
            return
        linear: Any = self._model.get_submodule(owner)
        layer: Any = form.restore(self._parts.pop(owner), representation, linear)
        if layer is not linear:
            # A bias sorts before the weight's parts, but may lie in another shard and come later.
            layer.bias = None if linear.bias is None else nn.Parameter(linear.bias, requires_grad=False)
            self._model.set_submodule(owner, layer)

    def _assign(self, name: str, tensor: torch.Tensor) -> None:
        from torch import nn

        owner, _, leaf = name.rpartition(".")
        try:
            module = self._model.get_submodule(owner)
        except AttributeError as error:
            raise ModelError(f"tensor {name} has no place in this architecture; build the checkpoint again") from error
        target = module._parameters.get(leaf, module._buffers.get(leaf))
        if target is None or target.shape != tensor.shape:
            expected = "no such tensor" if target is None else str(tuple(target.shape))
            raise ModelError(f"tensor {name} must have shape {expected}, got {tuple(tensor.shape)}; build it again")
        # As stored when nothing was asked: some architectures keep single tensors in float32.
        converted = tensor.to(target.dtype) if self._convert and tensor.is_floating_point() else tensor
        if leaf in module._parameters:
            setattr(module, leaf, nn.Parameter(converted, requires_grad=False))
        else:
            module._buffers[leaf] = converted


def _weights_bytes(model: nn.Module) -> int:
    seen: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        seen[tensor.data_ptr()] = max(tensor.nbytes, seen.get(tensor.data_ptr(), 0))
    return sum(seen.values())
