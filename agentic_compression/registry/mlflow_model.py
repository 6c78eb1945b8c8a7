"""The thin MLflow model of a stored checkpoint: a description beside hard links, no second copy of the weights.

``data/artifacts/models/<registered model>/<checkpoint>-<digest>/`` holds ``MLmodel``, requirements, an example,
``checkpoint/`` with hard links to the checkpoint's files, and ``location.json``, which says where these are. The
checkpoint itself is not touched: its digest and its size count what ships, and the baseline's folder belongs to the
user. MLflow refuses symbolic links that lead out of a model. Where no hard link can be made (another file system,
another owner's files), ``checkpoint/`` only says where the files are, and the model runs on this machine alone.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression import __version__
from agentic_compression.records import CheckpointRef

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

__all__ = ["DEFAULT_EXAMPLE", "LOCATION", "NEW_TOKENS", "checkpoint_of", "drop_unfinished", "write_mlflow_model"]

DEFAULT_EXAMPLE = "Once upon a time"
CHECKPOINT, LOCATION = "checkpoint", "location.json"
_UNFINISHED = ".partial"
NEW_TOKENS = 64
LOADER = "agentic_compression.registry.pyfunc"
_ENGINES = {"llama.cpp": ("xllamacpp", "transformers")}
_TRANSFORMERS = ("torch", "transformers", "safetensors")


def write_mlflow_model(root: Path, name: str, checkpoint: CheckpointRef, example: str = DEFAULT_EXAMPLE) -> Path:
    """Make the MLflow model of a checkpoint, unless it is there. The caller holds the journal's lock.

    Args:
        root: folder of all thin models.
        name: the registered model.
        checkpoint: what it loads.
        example: a prompt to show as the input example.

    Returns:
        The folder, complete or not there at all.
    """
    stored = Path(checkpoint.path)
    folder = root / name / f"{stored.name}-{checkpoint.digest[:16]}"
    if _stands(folder, stored):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=_UNFINISHED))
    try:
        unfinished.chmod(0o755)
        _link_files(stored, unfinished / CHECKPOINT)
        _write_json(unfinished / LOCATION, {"path": str(stored)})
        _describe(unfinished, checkpoint, example)
        if folder.is_dir():  # the same content was stored elsewhere before
            shutil.rmtree(folder)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was quicker
            if not _stands(folder, stored):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def drop_unfinished(root: Path) -> None:
    """Delete the folders that killed processes left: the caller holds the journal's lock, so nobody works in one."""
    for folder in root.glob(f"*/.*{_UNFINISHED}"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def checkpoint_of(source: Path) -> Path:
    """The checkpoint behind a version's source, or behind the ``checkpoint`` folder in it; else the folder itself."""
    location = source / LOCATION
    return Path(json.loads(location.read_text(encoding="utf-8"))["path"]) if location.is_file() else source


def _stands(folder: Path, stored: Path) -> bool:
    return (folder / "MLmodel").is_file() and checkpoint_of(folder) == stored


def _link_files(stored: Path, folder: Path) -> None:
    """Hard links to the checkpoint's files, all of them or none."""
    folder.mkdir()
    try:
        for path in sorted(stored.iterdir()):
            if path.is_file() and not path.name.startswith(".") and path.name != LOCATION:
                os.link(path.resolve(), folder / path.name)
    except OSError:
        shutil.rmtree(folder)
        folder.mkdir()
        _write_json(folder / LOCATION, {"path": str(stored)})


def _describe(folder: Path, checkpoint: CheckpointRef, example: str) -> None:
    """``MLmodel`` with what it names: requirements, environment, example."""
    from mlflow import pyfunc
    from mlflow.models import Model

    requirements = _requirements(checkpoint)
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    environment = f"python: {platform.python_version()}\nbuild_dependencies: []\ndependencies:\n- -r requirements.txt\n"
    (folder / "python_env.yaml").write_text(environment, encoding="utf-8")
    _write_json(folder / "input_example.json", [example])
    _write_json(folder / "serving_input_example.json", {"inputs": [example]})
    model = Model(
        signature=_signature(),
        saved_input_example_info={
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "json_object",
        },
        metadata={"digest": checkpoint.digest, "size_bytes": checkpoint.size_bytes},
        model_size_bytes=checkpoint.size_bytes,
    )
    pyfunc.add_to_model(model, loader_module=LOADER, data=CHECKPOINT, python_env="python_env.yaml")
    model.save(str(folder / "MLmodel"))


def _signature() -> ModelSignature:
    """Prompts in, continuations out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    parameters = ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, NEW_TOKENS),
            ParamSpec("temperature", DataType.double, 0.0),
            ParamSpec("seed", DataType.long, 0),
        ]
    )
    text = Schema([ColSpec(DataType.string)])
    return ModelSignature(inputs=text, outputs=text, params=parameters)


def _requirements(checkpoint: CheckpointRef) -> list[str]:
    """This package, and what runs this checkpoint, in the versions that measured it."""
    engine = next((name for name in checkpoint.loads_with if name in _ENGINES), None)
    packages = ("mlflow", *(_ENGINES[engine] if engine else _TRANSFORMERS))
    pinned = [f"{package}=={importlib.metadata.version(package)}" for package in packages]
    return [f"agentic-compression=={__version__}", *pinned]


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + os.linesep, encoding="utf-8")
