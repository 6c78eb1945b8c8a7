"""Loading a plain Hugging Face folder into memory of its own, one tensor at a time.

transformers maps the weights' files into memory. Pages of such a map stay resident until the last tensor of a file is
gone, so that a model whose layers are replaced one after the other would be in memory twice: as pages of the file and
packed. Here transformers builds and fills the model as always (renamed keys, merged experts, tied weights), but every
tensor it asks for is read straight into memory of its own.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from agentic_compression.checkpoints.folders import weight_files
from agentic_compression.checkpoints.tensor_files import TensorFile
from agentic_compression.errors import ModelError

__all__ = ["load_plain_folder"]


def load_plain_folder(folder: Path, dtype: torch.dtype | None = None, *, trust_remote_code: bool = False) -> Any:
    """A causal language model from a folder as ``save_pretrained`` writes it.

    A folder with code of its own or quantized weights is loaded by transformers alone, from mapped files.

    Args:
        folder: with ``config.json`` and safetensors.
        dtype: of floating-point weights; as stored when None.
        trust_remote_code: run model code that comes with the folder.

    Raises:
        ModelError: when there are no safetensors or transformers cannot load the folder.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    files = weight_files(folder)  # refuses pickled weights with a clear message
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
        own_class = _model_class(config)
        if own_class is None:
            return AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
        return _fill(own_class, config, folder, files, dtype)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} could not be loaded by transformers: {error}") from error


def _model_class(config: Any) -> Any:
    """transformers' own class for this config; None where the folder brings code or quantized weights."""
    from transformers import AutoModelForCausalLM

    brings_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if brings_code or getattr(config, "quantization_config", None) is not None:
        return None
    mapping: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    return found if isinstance(found, type) else None


def _fill(own_class: Any, config: Any, folder: Path, files: list[Path], dtype: torch.dtype | None) -> Any:
    with ExitStack() as stack:
        lazy: dict[str, _Lazy] = {}
        for file in _listed(folder, files):
            source = stack.enter_context(TensorFile(file))
            lazy.update({name: _Lazy(source, name) for name in source.names})
        wanted = dtype or config.dtype or _first_float(lazy)
        name_or_path = config.name_or_path
        model = own_class.from_pretrained(None, config=config, state_dict=lazy, dtype=wanted)
    model.config.name_or_path = name_or_path
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _listed(folder: Path, files: list[Path]) -> list[Path]:
    """The files transformers would read: ``model.safetensors``, else those of the index, else all there are.

    Raises:
        ModelError: when the index names a file that is missing.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return files
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} misses {name}, which {index.name} lists; download it again")
    return [folder / name for name in names]


class _Lazy:
    """A tensor that is read when transformers asks for its values, as it asks for a slice of a safetensors file."""

    def __init__(self, source: TensorFile, name: str) -> None:
        self._source = source
        self._name = name

    def __getitem__(self, _: object) -> torch.Tensor:
        return self._source.read(self._name)

    def get_dtype(self) -> str:
        """In the words of the safetensors format, ``BF16``."""
        return self._source.dtype_name(self._name)

    def is_floating_point(self) -> bool:
        """Whether it is a float of any width."""
        return self.get_dtype().startswith(("F", "BF"))

    @property
    def dtype(self) -> torch.dtype:
        """The stored dtype."""
        return self._source.dtype(self._name)


def _first_float(lazy: dict[str, _Lazy]) -> torch.dtype:
    return next((tensor.dtype for tensor in lazy.values() if tensor.is_floating_point()), torch.float32)
