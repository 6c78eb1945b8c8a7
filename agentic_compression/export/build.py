"""Writing an export's weights, configuration and tokenizer. Runs in a child process."""

from __future__ import annotations

import json
import shutil
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from agentic_compression.checkpoints.folders import GGUF_NAME, shipped_files
from agentic_compression.checkpoints.manifest import MANIFEST_NAME
from agentic_compression.checkpoints.stored import stored_kind
from agentic_compression.errors import ModelError, UnavailableError
from agentic_compression.export.copying import copy_file
from agentic_compression.export.plan import OWN_GRID, ExportPlan
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import Record
from agentic_compression.runtimes import llama_file
from agentic_compression.runtimes.tokenizer import load_tokenizer
from agentic_compression.runtimes.vllm_schemes import check_vllm_loads

if TYPE_CHECKING:
    from agentic_compression.checkpoints import LoadedCheckpoint
    from agentic_compression.checkpoints.gguf_grid import OwnGrid

__all__ = ["BuildRequest", "Built", "build", "require_space"]

_MARGIN = 64_000_000  # tokenizer, card and what a file system keeps for itself
_SETTINGS = ("generation_config.json", "chat_template.jinja", "chat_template.json")


class BuildRequest(Record):
    """What to write, and where."""

    source: str = Field(description="checkpoint folder")
    folder: str = Field(description="an existing folder to write into")
    plan: ExportPlan
    gguf_type: str | None = None
    threads: int = Field(default=1, ge=1)


class Built(Record):
    """What was written; a form that is empty says that nothing was, the notes say why."""

    form: str
    notes: tuple[str, ...] = ()


def build(request: BuildRequest, progress: Progress = no_progress) -> Built:
    """Write the files of a plan.

    Raises:
        AcfError: when the model has no such form, or the disk is too full.
    """
    source, folder, making = Path(request.source), Path(request.folder), request.plan.making
    progress("write", 0, 1)
    if making == "as stored":
        built = _copy(source, folder)
        if request.plan.vllm:
            built = built.model_copy(update={"notes": (*built.notes, *_vllm_notes(source))})
    else:
        import torch

        from agentic_compression.checkpoints import load_checkpoint

        torch.set_num_threads(request.threads)
        loaded = load_checkpoint(source)
        if loaded.tokenizer is None:
            raise ModelError(f"{source} must hold a tokenizer to be exported, got none; copy tokenizer.json into it")
        if making == "gguf":
            built = _gguf(loaded, folder, str(request.gguf_type))
        elif making == "onnx":
            built = _onnx(loaded, source, folder)
        else:
            built = _safetensors(loaded, folder, making == "dense")
    progress("write", 1, 1)
    return built


def require_space(folder: Path, needed: int) -> None:
    """Refuse what the disk cannot take.

    Raises:
        UnavailableError: with the bytes that are needed and free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _MARGIN:
        raise UnavailableError(
            f"the export needs about {(needed + _MARGIN) / 1e6:,.0f} MB in {folder.parent}, got {free / 1e6:,.0f} MB "
            "free; make room or choose another folder with --output"
        )


def _copy(source: Path, folder: Path) -> Built:
    """The checkpoint's own files."""
    gguf = llama_file(source)
    files = [path for path in shipped_files(source) if path.suffix != ".gguf"] if gguf is None else [gguf]
    if gguf is not None:
        files += [path for name in ("config.json", MANIFEST_NAME, *_SETTINGS) if (path := source / name).is_file()]
    require_space(folder, sum(path.stat().st_size for path in files))
    if gguf is not None:
        load_tokenizer(source).save_pretrained(folder)
    for path in files:
        copy_file(path, folder / (GGUF_NAME if path == gguf else path.name))
    return Built(form="as stored")


def _vllm_notes(source: Path) -> tuple[str, ...]:
    """What vLLM would refuse, by its rules; it is not run."""
    try:
        check_vllm_loads(source)
    except ModelError as error:
        return (f"transformers alone loads this: {error}",)
    return ("vLLM's rules allow this, it was not run there",)


def _safetensors(loaded: LoadedCheckpoint, folder: Path, dense: bool) -> Built:
    from agentic_compression.export.dense import float_bytes, make_dense, make_packed, write_compressed_tensors

    model = loaded.model
    if dense:
        make_dense(model)
    else:
        make_packed(model)
    require_space(folder, float_bytes(model))
    loaded.tokenizer.save_pretrained(folder)
    _settle_generation(model)
    if dense:
        model.save_pretrained(folder)
        mode = stat.S_IMODE((folder / "config.json").stat().st_mode)
        for path in folder.glob("*.safetensors"):
            path.chmod(mode)  # safetensors may make it its owner's only
        return Built(form=f"dense {_dtype(model)}")
    settings = write_compressed_tensors(model, folder)
    _write_config(model, folder, settings)
    return Built(form=str(settings["format"]))


def _write_config(model: Any, folder: Path, quantization: dict[str, Any] | None = None) -> None:
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
    config.pop("quantization_config", None)
    config |= {"architectures": [type(model).__name__], "dtype": _dtype(model)}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _settle_generation(model: Any) -> None:
    """Drop sampling settings of models that do not sample: transformers refuses to save what they would not use."""
    generation = getattr(model, "generation_config", None)
    if generation is not None and not generation.do_sample:
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
            setattr(generation, name, None)


def _gguf(loaded: LoadedCheckpoint, folder: Path, gguf_type: str) -> Built:
    from agentic_compression.checkpoints.gguf_file import weight_bytes, write_gguf
    from agentic_compression.checkpoints.gguf_grid import OwnGrid, take_own_grid
    from agentic_compression.export.dense import make_dense
    from agentic_compression.methods.gguf import GgufConfig, apply
    from agentic_compression.methods.interface import CompressionContext

    model, tokenizer = loaded.model, loaded.tokenizer
    file_type = gguf_type.removeprefix(OWN_GRID)
    own = take_own_grid(model) if file_type != gguf_type else OwnGrid()
    if file_type != gguf_type and not own.types:
        return Built(form="", notes=tuple(_own_grid_notes(own)))
    rounded = _rounded(model)
    make_dense(model)
    config = GgufConfig.model_construct(type=file_type, importance=False)  # F32 is a type, though no method's choice
    planned = apply(model, config, CompressionContext(tokenizer=tokenizer))
    assert planned.gguf is not None
    plan = planned.gguf
    names = [name for name, _ in Counter(own.types.values()).most_common()]
    if names:
        plan = replace(plan, file_type=names[0], types={**plan.types, **own.types}, layers=own.layers)
    require_space(folder, weight_bytes(model, plan))
    notes = write_gguf(model, tokenizer, folder / GGUF_NAME, plan)
    tokenizer.save_pretrained(folder)
    _settle_generation(model)
    _write_config(model, folder)
    form = f"{' and '.join(names)} on the checkpoint's own grid, the rest {file_type}" if names else file_type
    return Built(form=form, notes=(*_own_grid_notes(own), *rounded, *planned.notes, *notes))


def _rounded(model: Any) -> tuple[str, ...]:
    """What is said of layers of ours that are made dense before they get blocks."""
    kinds = sorted({str(kind) for module in model.modules() if (kind := stored_kind(module)) is not None})
    return (f"layers stored as {', '.join(kinds)} are dequantized and rounded to llama.cpp's blocks",) if kinds else ()


def _own_grid_notes(own: OwnGrid) -> list[str]:
    """How many layers keep their codes, and by reason which do not."""
    counts = Counter(own.types.values()).most_common()
    notes = []
    if counts:
        blocks = ", ".join(f"{count} as {name}" for name, count in counts)
        notes.append(f"linears that keep the checkpoint's own codes: {blocks}; only scales are rounded, to float16")
    reasons: dict[str, list[str]] = {}
    for name, reason in own.refused.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        notes.append(f"{len(names)} linears do not keep their codes, the first is {names[0]}: {reason}")
    return notes


def _onnx(loaded: LoadedCheckpoint, source: Path, folder: Path) -> Built:
    from agentic_compression.export.dense import float_bytes, make_dense
    from agentic_compression.export.onnx_file import ONNX_NAME, write_onnx

    make_dense(loaded.model)
    require_space(folder, float_bytes(loaded.model, 4))
    loaded.tokenizer.save_pretrained(folder)
    _settle_generation(loaded.model)
    _write_config(loaded.model, folder)
    write_onnx(loaded.model, folder / ONNX_NAME)
    return Built(form="float32")
