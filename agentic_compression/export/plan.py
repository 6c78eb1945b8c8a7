"""Whether a checkpoint has a form in a format, read off its manifest before anything is loaded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from agentic_compression.checkpoints.gguf_types import FILE_TYPES, needs_importance
from agentic_compression.checkpoints.manifest import CheckpointManifest, PackedModule, read_manifest
from agentic_compression.errors import ConfigurationError, ModelError, UnavailableError
from agentic_compression.records import ExportFormat, Record
from agentic_compression.runtimes import llama_file

__all__ = ["OWN_GRID", "ExportPlan", "Making", "foreign_quantizer", "plan_export", "without_own_grid"]

Making = Literal["as stored", "dense", "compressed-tensors", "gguf", "onnx", "recipe"]
OWN_GRID = "own codes, the rest "
"""Before a GGUF type: integer layers keep their codes, and the type is that of all others."""
_OWN_GRIDS = (f"{OWN_GRID}Q8_0", f"{OWN_GRID}F16")
_LADDER = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
_LEAST_BITS = {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 5: "Q5_K_M", 6: "Q6_K", 7: "Q8_0", 8: "Q8_0"}
_BITS_OF_KIND = {"int8": 8, "fp8": 8, "nf4": 4}


class ExportPlan(Record):
    """How the files are made."""

    making: Making
    gguf_types: tuple[str, ...] = Field(
        default=(), description="GGUF file types to try, the checkpoint's own grid first; several when the tool chooses"
    )
    vllm: bool = Field(default=False, description="say whether vLLM's rules allow it")
    chosen: bool = Field(default=False, description="the user asked for this GGUF type")
    notes: tuple[str, ...] = ()


def plan_export(folder: Path, wanted: ExportFormat, gguf_type: str | None = None) -> ExportPlan:
    """How a checkpoint folder becomes this format.

    Args:
        folder: one of our checkpoints, or a plain Hugging Face folder.
        wanted: the format.
        gguf_type: the GGUF file type asked for; None chooses: the checkpoint's own grid, else by its bits.

    Raises:
        ConfigurationError: when the checkpoint has no such form, with the reason and what to use.
        ModelError: when the folder is no checkpoint.
        UnavailableError: when a library is missing.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"a checkpoint is a folder with config.json, got {folder}; check the path")
    if gguf_type is not None and wanted != "gguf":
        raise ConfigurationError(f"--type is of GGUF files, got {gguf_type} with --format {wanted}; leave it out")
    manifest = read_manifest(folder)
    if wanted == "recipe":
        return _recipe(manifest, folder)
    if llama_file(folder) is not None:
        return _of_gguf(folder, wanted, gguf_type)
    quantizer = foreign_quantizer(folder, manifest)
    if wanted == "hf":
        return _hf(manifest)
    if wanted == "compressed-tensors":
        return _compressed_tensors(manifest, quantizer)
    if quantizer is not None:
        raise ConfigurationError(
            f"{folder} is quantized by {quantizer} and was not made here, so it cannot be written as {wanted}; "
            "export the model it was made from"
        )
    return _gguf(manifest, gguf_type) if wanted == "gguf" else _onnx(manifest)


def without_own_grid(gguf_types: tuple[str, ...]) -> tuple[str, ...]:
    """What is left to try where no layer keeps its codes: the ladder, from Q8_0 on at the latest.

    A ladder that begins with F16 is one of float layers; what the own grid would have given the rest comes first.
    """
    ladder = tuple(name for name in gguf_types if not name.startswith(OWN_GRID))
    return ladder if "Q8_0" in ladder else ("Q8_0", *ladder)


def _recipe(manifest: CheckpointManifest | None, folder: Path) -> ExportPlan:
    if manifest is None or manifest.strategy.is_baseline:
        raise ConfigurationError(
            f"a recipe is that of a compressed checkpoint, got {folder}, to which nothing was done; choose another"
        )
    return ExportPlan(making="recipe")


def _of_gguf(folder: Path, wanted: ExportFormat, gguf_type: str | None) -> ExportPlan:
    if wanted != "gguf":
        raise ConfigurationError(
            f"{folder} holds a GGUF file, whose blocks only llama.cpp reads, so it cannot be written as {wanted}; "
            "use --format gguf, or export a checkpoint of another method"
        )
    if gguf_type is not None:
        raise ConfigurationError(f"{folder} is a GGUF file already, got --type {gguf_type}; leave --type out")
    return ExportPlan(making="as stored")


def foreign_quantizer(folder: Path, manifest: CheckpointManifest | None) -> str | None:
    """What a folder without our manifest is quantized by; None for dense ones and our own."""
    if manifest is not None:
        return None
    settings: Any = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")
    if not isinstance(settings, dict):
        return None
    by_flag = "bitsandbytes" if settings.get("load_in_4bit") or settings.get("load_in_8bit") else "an unknown method"
    return str(settings.get("quant_method") or by_flag)


def _hf(manifest: CheckpointManifest | None) -> ExportPlan:
    if manifest is None or "transformers" in manifest.loads_with:
        return ExportPlan(making="as stored")
    kinds = sorted({module.kind for module in manifest.modules.values()})
    if kinds == ["bitmask"]:
        return ExportPlan(
            making="dense", notes=("zeros are stored like other numbers: transformers reads no bit masks",)
        )
    return ExportPlan(
        making="dense",
        notes=(f"layers stored as {', '.join(kinds)} are written dense, because transformers has no form for them",),
    )


def _compressed_tensors(manifest: CheckpointManifest | None, quantizer: str | None) -> ExportPlan:
    if manifest is None:
        if quantizer == "compressed-tensors":
            return ExportPlan(making="as stored")
        raise ConfigurationError(
            f"compressed-tensors holds quantized linears, got a model that is {quantizer or 'not quantized'}; "
            "use --format hf"
        )
    kinds = {module.kind: name for name, module in manifest.modules.items()}
    for kind in ("low_rank", "adapted", "nf4"):
        if kind in kinds:
            raise ConfigurationError(
                f"compressed-tensors has no form for {kinds[kind]}, which is stored as {kind}; use --format hf"
            )
    kept = set(kinds) - {"bitmask"}
    if not kept:
        zeros = "only zeros, and compressed-tensors 0.19 reads no sparse formats any more" if kinds else "dense weights"
        raise ConfigurationError(f"compressed-tensors holds quantized linears, got {zeros}; use --format hf")
    if "fp8" in kept and len(kept) > 1:
        raise ConfigurationError(
            f"{kinds['fp8']} is fp8 and others are not, which no compressed-tensors format holds; use --format hf"
        )
    if "transformers" in manifest.loads_with and "int8" not in kept:
        return ExportPlan(making="as stored", vllm=True)
    notes = []
    if "int8" in kept:
        notes.append("int8 codes and scales are kept; activations are no longer rounded to int8")
    if "bitmask" in kinds:
        notes.append("zeros of layers that are not quantized are stored like other numbers")
    return ExportPlan(making="compressed-tensors", notes=tuple(notes))


def _gguf(manifest: CheckpointManifest | None, gguf_type: str | None) -> ExportPlan:
    if gguf_type is not None:
        if gguf_type not in FILE_TYPES or needs_importance(gguf_type):
            fit = ", ".join(name for name in FILE_TYPES if not needs_importance(name))
            raise ConfigurationError(
                f"--type is one of {fit}, got {gguf_type!r}; types that need an importance matrix are made by "
                "'acf compress --strategy gguf:type=…', which calibrates"
            )
        return ExportPlan(making="gguf", gguf_types=(gguf_type,), chosen=True)
    first = _LADDER.index(_LEAST_BITS.get(_bits(manifest), "F16"))
    own = _OWN_GRIDS if _has_integers_for_blocks(manifest) else ()
    return ExportPlan(making="gguf", gguf_types=(*own, *_LADDER[first:]))


def _has_integers_for_blocks(manifest: CheckpointManifest | None) -> bool:
    """Whether any linear, not a part of one, has codes whose scales may fall into llama.cpp's blocks of 32."""
    modules = manifest.modules if manifest else {}
    return any(
        module.kind == "int8"
        or (isinstance(module, PackedModule) and (module.group_size % 32 == 0 or module.group_size == -1))
        for name, module in modules.items()
        if name.rpartition(".")[0] not in modules
    )


def _bits(manifest: CheckpointManifest | None) -> int:
    """Of the widest linear; 16 where any is stored in floating point or as a product."""
    if manifest is None or not manifest.modules:
        return 16
    widths = (
        module.bits if isinstance(module, PackedModule) else _BITS_OF_KIND.get(module.kind, 16)
        for module in manifest.modules.values()
    )
    return max(2, *widths, 2)


def _onnx(manifest: CheckpointManifest | None) -> ExportPlan:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(library) is None:
            raise UnavailableError(
                f"ONNX needs the library {library}; install it with: pip install 'agentic-compression[onnx]'"
            )
    notes = ["the graph computes the logits of a whole sequence in float32; it keeps no cache of keys and values"]
    kinds = sorted({module.kind for module in manifest.modules.values()}) if manifest else []
    if kinds:
        notes.append(
            f"layers stored as {', '.join(kinds)} are written dequantized: this package's kernels have no ONNX"
        )
    return ExportPlan(making="onnx", notes=tuple(notes))
