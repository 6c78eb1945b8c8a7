"""Inspect a local checkpoint folder: config, safetensors headers and tokenizer, each problem one clear line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.errors import ModelError
from agentic_compression.spec.counting import ParameterCount, count_parameters
from agentic_compression.spec.safetensors_header import TensorHeader, read_header, read_integers
from agentic_compression.spec.shape import ModelShape, shape_of_config
from agentic_compression.storage import digest_of_files

__all__ = ["PICKLE_REASON", "LocalCheckpoint", "inspect_folder", "require_causal", "require_folder"]

PICKLE_REASON = "loading a pickle runs code from the file, so only safetensors are read"
_CONVERT = "where you trust the file, convert it: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_DIGEST_EXTRAS = (
    *_TOKENIZER_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "model.safetensors.index.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAXIMUM_JSON = 64 << 20


@dataclass(frozen=True)
class LocalCheckpoint:
    """What a checkpoint folder holds."""

    folder: Path
    config: Mapping[str, Any]
    shape: ModelShape
    count: ParameterCount
    digest: str


def require_folder(model: str) -> Path:
    """The folder that a path names.

    Raises:
        ModelError: when it is missing (with similar names beside it) or a file.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(f"{model} is a file, a model is a folder with config.json and *.safetensors; give its folder")
    siblings = [item.name for item in path.parent.iterdir() if item.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(str(path.parent / name) for name in near)}?" if near else "check the path"
    raise ModelError(f"model folder {model} does not exist; {hint}")


def inspect_folder(folder: Path, *, trust_remote_code: bool = False) -> LocalCheckpoint:
    """Read a checkpoint folder exactly: every tensor's header is checked, no weight is loaded.

    Raises:
        ModelError: when config, weights or tokenizer are missing, corrupt, of another kind or a pickle.
    """
    config = _read_config(folder)
    require_causal(config, str(folder), trust_remote_code=trust_remote_code)
    files = _weight_files(folder)
    tensors: dict[str, TensorHeader] = {}
    owner: dict[str, Path] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise ModelError(f"tensor {name!r} is in {owner[name].name} and in {path.name}; remove the wrong shard")
            tensors[name], owner[name] = tensor, path
    _check_index(folder, owner)
    shape = shape_of_config(config)

    def shape_of(name: str) -> tuple[int, ...] | None:
        return read_integers(owner[name], tensors[name])

    try:
        count = count_parameters(tensors, config, tied=shape.tied, shape_of=shape_of)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer, looked for {', '.join(_TOKENIZER_FILES)}; copy the model's files there"
        )
    extras = [folder / name for name in _DIGEST_EXTRAS if (folder / name).is_file()]
    return LocalCheckpoint(folder, config, shape, count, digest_of_files(folder / "config.json", *files, *extras))


def require_causal(config: Mapping[str, Any], model: str, *, trust_remote_code: bool) -> None:
    """Refuse what is not a causal language model, and what needs code from its repository without leave.

    Raises:
        ModelError: with what it is instead.
    """
    kind, auto_map = config.get("model_type"), config.get("auto_map")
    named = config.get("architectures")
    architectures = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if isinstance(auto_map, dict) and not trust_remote_code and kind not in _causal_types():
        raise ModelError(
            f"{model} needs Python code from its own repository (model_type {kind!r}); "
            "read that code, then pass --trust-remote-code"
        )
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        return
    if not architectures and kind in _causal_types():
        return
    if isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map and trust_remote_code:
        return
    what = ", ".join(architectures) or f"model_type {kind!r}"
    raise ModelError(
        f"{model} is not a causal language model, got {what}; choose one whose architecture ends in ForCausalLM"
    )


def _causal_types() -> frozenset[str]:
    """Asked only when config.json leaves it open: the import takes seconds."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{folder} is a LoRA adapter, not a model; merge it into its base model and give that folder"
            )
        raise ModelError(f"{folder} has no config.json; give the folder that save_pretrained wrote")
    config = _read_json(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(config).__name__}; copy the file again")
    return config


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _MAXIMUM_JSON:
        raise ModelError(f"{path} has {path.stat().st_size:,} bytes, at most {_MAXIMUM_JSON:,}; copy the file again")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}; copy the file again") from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{index} names the shard {name!r}; a shard is a .safetensors file in the same folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]}; copy the missing files"
            )
        return [folder / name for name in names]
    present = sorted(path.name for path in folder.iterdir() if path.is_file())
    if pickles := [name for name in present if name.endswith(_PICKLES)]:
        raise ModelError(f"{folder} has only pickle weights ({pickles[0]}): {PICKLE_REASON}; {_CONVERT}")
    others = [name for name in present if name.endswith((".safetensors", ".gguf"))]
    got = f"got {', '.join(others[:3])}" if others else "got no weights at all"
    raise ModelError(
        f"{folder} needs model.safetensors or model.safetensors.index.json, {got}; save it with save_pretrained"
    )


def _weight_map(index: Path) -> dict[str, str]:
    content = _read_json(index)
    weights = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights.values()):
        raise ModelError(f"{index} has no weight_map of tensor to file name; copy the file again")
    return weights


def _check_index(folder: Path, owner: Mapping[str, Path]) -> None:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    for tensor, file in _weight_map(index).items():
        if tensor not in owner or owner[tensor].name != file:
            raise ModelError(
                f"{folder}: the index promises tensor {tensor!r} in {file}, it is not there; copy that shard again"
            )
