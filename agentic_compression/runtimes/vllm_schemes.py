"""Which of our checkpoints vLLM can load, read off the manifest before an engine is started.

vLLM's kernels for ``pack-quantized`` weights know 4 and 8 bits and groups of 32, 64 or 128 input features or a whole
row. It also runs the query, key and value projections of a block as one matrix, and the gate and up projections of its
MLP as another, so that the parts of each must be stored alike. What it says itself of a folder that breaks these rules
comes late, from inside the engine, and names no module of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from agentic_compression.checkpoints.folders import weight_files
from agentic_compression.checkpoints.manifest import (
    CheckpointManifest,
    ModuleRepresentation,
    PackedModule,
    read_manifest,
)
from agentic_compression.errors import ModelError

__all__ = ["check_vllm_loads"]

_BITS = (4, 8)
_GROUP_SIZES = (-1, 32, 64, 128)
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_ELSE = "or leave the runtime open"


def check_vllm_loads(folder: Path) -> None:
    """Check a checkpoint of ours; a folder without our manifest is left to vLLM.

    Raises:
        ModelError: when vLLM cannot load it, with the first module that is at fault and what to do.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    _check_format(folder, manifest)
    if not manifest.modules:
        return
    names = _module_names(folder)
    for name, representation in manifest.modules.items():
        if isinstance(representation, PackedModule):
            _check_packed(name, representation)
        for sibling in _fused_with(name, names):
            other = manifest.modules.get(sibling)
            if other != representation:
                raise ModelError(
                    f"{name} and {sibling} must be stored alike for vLLM, which runs them as one matrix, got "
                    f"{_described(representation)} and {_described(other)}; give both the same parameters, {_ELSE}"
                )


def _check_format(folder: Path, manifest: CheckpointManifest) -> None:
    if "transformers" in manifest.loads_with:
        return
    foreign = next((item for item in manifest.modules.items() if not isinstance(item[1], PackedModule)), None)
    reason = f", because {foreign[0]} is stored as {foreign[1].kind}" if foreign else ""
    raise ModelError(
        f"vLLM needs a checkpoint whose loads_with names transformers, got {folder}, which loads with "
        f"{', '.join(manifest.loads_with)} only{reason}; use a strategy of one standard format, {_ELSE}"
    )


def _check_packed(name: str, packed: PackedModule) -> None:
    if packed.bits not in _BITS:
        raise ModelError(f"{name} must have 4 or 8 bits for vLLM, got {packed.bits}; compress it with those, {_ELSE}")
    if packed.group_size not in _GROUP_SIZES:
        raise ModelError(
            f"{name} must have groups of -1 (whole rows), 32, 64 or 128 for vLLM, got {packed.group_size}; "
            f"compress it with one of those as group_size, {_ELSE}"
        )


def _fused_with(name: str, names: Collection[str]) -> Iterator[str]:
    """The other modules of the model that vLLM joins with this one."""
    parent, _, leaf = name.rpartition(".")
    for parts in _FUSED:
        if leaf in parts:
            siblings = (f"{parent}.{part}" for part in parts if part != leaf)
            yield from (sibling for sibling in siblings if sibling in names)


def _module_names(folder: Path) -> set[str]:
    """Names of the modules that have tensors in the folder's weight files."""
    from agentic_compression.checkpoints.tensor_files import TensorFile

    found: set[str] = set()
    for path in weight_files(folder):
        with TensorFile(path) as file:
            found.update(name.rpartition(".")[0] for name in file.names)
    return found


def _described(representation: ModuleRepresentation | None) -> str:
    """A scheme in words; None is a module that the manifest does not list."""
    if representation is None:
        return "dense"
    if isinstance(representation, PackedModule):
        symmetry = "symmetric" if representation.symmetric else "asymmetric"
        groups = "whole rows" if representation.group_size == -1 else f"groups of {representation.group_size}"
        return f"{representation.bits} bits in {symmetry} {groups}"
    return representation.kind
