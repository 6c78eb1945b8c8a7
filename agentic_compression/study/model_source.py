"""From what the user wrote as MODEL to a local checkpoint folder."""

from __future__ import annotations

from pathlib import Path

from agentic_compression.errors import ModelError
from agentic_compression.records import ModelSpec, StudyConfig
from agentic_compression.registry import model_folder
from agentic_compression.settings import Settings
from agentic_compression.storage import digest_of_files
from agentic_compression.study.workbench import Workbench

__all__ = ["fetch_model", "readable_model"]

_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja")


def readable_model(config: StudyConfig, bench: Workbench) -> str:
    """The model reference that ``infer_spec`` reads; ``models:/…`` becomes the folder behind it.

    Raises:
        ModelError: when the registry has no such model.
    """
    if not config.model.startswith("models:/"):
        return config.model
    if bench.registry is None:
        raise ModelError(f"{config.model} needs a model registry, and this run has none; give a folder or Hub id")
    return str(model_folder(bench.registry, config.model))


def fetch_model(spec: ModelSpec, settings: Settings) -> tuple[Path, str]:
    """The checkpoint folder of the uncompressed model and its digest; a Hub model is downloaded once.

    Raises:
        ModelError: when it cannot be downloaded.
    """
    if spec.path is not None:
        folder = Path(spec.path)
        return folder, spec.digest or digest_of_files(*_shipped(folder))
    from huggingface_hub import snapshot_download

    token = settings.hf_token.get_secret_value() if settings.hf_token else None
    try:
        path = snapshot_download(
            spec.model,
            cache_dir=settings.artifacts / "hub",
            allow_patterns=list(_FILES),
            token=token,
            endpoint=settings.hf_endpoint,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{spec.model} could not be downloaded from {settings.hf_endpoint}: {reason}") from error
    folder = Path(path)
    return folder, digest_of_files(*_shipped(folder))


def _shipped(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and any(path.match(name) for name in _FILES)]
