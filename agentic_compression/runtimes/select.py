"""Which engine runs a checkpoint folder."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Literal

from agentic_compression.errors import ConfigurationError, ModelError
from agentic_compression.runtimes.interface import Runtime

__all__ = ["RuntimeKind", "llama_file", "open_runtime", "runtime_kind", "runtime_version"]

RuntimeKind = Literal["transformers", "llama.cpp", "vllm"]


def llama_file(path: str | Path) -> Path | None:
    """The GGUF file of a checkpoint folder; None when it holds none.

    Raises:
        ModelError: when it holds several.
    """
    found = sorted(Path(path).glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ModelError(f"{path} must hold one GGUF file, got {names}; keep one of them a folder")
    return found[0] if found else None


def runtime_kind(path: str | Path) -> RuntimeKind:
    """The engine that a folder's own files ask for."""
    return "transformers" if llama_file(path) is None else "llama.cpp"


def runtime_version(kind: RuntimeKind) -> str:
    """The engine with its version, for records and keys; the engine is not imported."""
    package = {"transformers": "transformers", "llama.cpp": "xllamacpp", "vllm": "vllm"}[kind]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return f"{kind} ({package} {version})" if kind != package else f"{kind} {version}"


def open_runtime(
    path: str | Path, device: str = "cpu", threads: int | None = None, *, kind: RuntimeKind | None = None
) -> Runtime:
    """Load a checkpoint into the engine that its files ask for, or into the one named.

    Args:
        path: the folder.
        device: ``cpu`` or ``cuda:n``.
        threads: CPU threads; torch's current setting, or one of llama.cpp's, when None.
        kind: ask for an engine; only ``vllm`` is an alternative, and only for folders of safetensors.

    Raises:
        ModelError: when the folder is missing, is no model, or has no tokenizer.
        UnavailableError: when the engine is not installed or cannot use the device.
        ConfigurationError: when the engine asked for cannot read the folder's files.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"checkpoint folder {folder} does not exist; rebuild it (acf rebuild STUDY EPISODE)")
    own = runtime_kind(folder)
    wanted = kind or own
    if wanted != own and "llama.cpp" in (wanted, own):
        raise ConfigurationError(f"{folder} must be run by {own}, got {wanted}; leave the runtime open")
    if wanted == "llama.cpp":
        from agentic_compression.runtimes.llama_cpp import LlamaCppRuntime

        return LlamaCppRuntime(folder, device=device, threads=threads or 1)
    if wanted == "vllm":
        from agentic_compression.runtimes.vllm_runtime import VllmRuntime

        return VllmRuntime(folder, device=device)
    from agentic_compression.runtimes.transformers_runtime import TransformersRuntime

    return TransformersRuntime(folder, device=device, threads=threads)
