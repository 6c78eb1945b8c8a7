"""``acf_checkpoint.json``: what was done to the model and how every compressed module is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from agentic_compression.errors import ModelError
from agentic_compression.records import Record, Strategy

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "AdaptedModule",
    "AppliedStage",
    "BitmaskModule",
    "CheckpointManifest",
    "Fp8Module",
    "Int8Module",
    "LowRankModule",
    "ModuleRepresentation",
    "Nf4Module",
    "PackedModule",
    "read_manifest",
]

MANIFEST_NAME = "acf_checkpoint.json"
FORMAT_VERSION = 2


class PackedModule(Record):
    """A linear whose weight is stored as integer codes in the compressed-tensors ``pack-quantized`` format."""

    kind: Literal["packed"] = "packed"
    bits: int = Field(ge=1, le=8)
    group_size: int = Field(ge=-1, description="input features that share one scale; -1 when a whole row does")
    symmetric: bool


class LowRankModule(Record):
    """A linear stored as ``up @ down``: ``down`` is ``(rank, in_features)``, ``up`` is ``(out_features, rank)``.

    The two are linears of their own, ``<name>.down`` and ``<name>.up``, listed where they are not dense.
    """

    kind: Literal["low_rank"] = "low_rank"
    rank: int = Field(ge=1)


class BitmaskModule(Record):
    """A linear whose weight is stored as one bit an element and its non-zero values; dense once loaded."""

    kind: Literal["bitmask"] = "bitmask"
    sparsity: float = Field(ge=0, le=1, description="fraction of elements that are zero")


class Int8Module(Record):
    """A linear stored as int8 codes with one scale an output row, in bitsandbytes' 8-bit format."""

    kind: Literal["int8"] = "int8"
    threshold: float = Field(ge=0, description="activation magnitude of outlier columns; 0 when there is no such path")


class Nf4Module(Record):
    """A linear stored as 4-bit NormalFloat codes in blocks of 64, in bitsandbytes' 4-bit format."""

    kind: Literal["nf4"] = "nf4"
    double_quant: bool = Field(description="whether the block maxima are quantized too")


class Fp8Module(Record):
    """A linear stored as E4M3 numbers with one scale a row, in compressed-tensors' ``float-quantized`` format."""

    kind: Literal["fp8"] = "fp8"


class AdaptedModule(Record):
    """A layer stored in its own format under ``base``, with ``up @ down`` of 16-bit factors added to its weight."""

    kind: Literal["adapted"] = "adapted"
    rank: int = Field(ge=1)
    dtype: Literal["bfloat16", "float16"] = Field(default="bfloat16", description="of the factors")


ModuleRepresentation = Annotated[
    PackedModule | LowRankModule | BitmaskModule | Int8Module | Nf4Module | Fp8Module | AdaptedModule,
    Field(discriminator="kind"),
]


class AppliedStage(Record):
    """One stage as it was applied."""

    method: str
    version: str = "1"
    notes: tuple[str, ...] = Field(default=(), description="what was done differently from asked, layer by layer")


class CheckpointManifest(Record):
    """Everything needed to rebuild the modules of a checkpoint. A module not listed is stored dense."""

    format_version: int = Field(default=FORMAT_VERSION, ge=1)
    base_digest: str = Field(description="content digest of the model that was compressed")
    strategy: Strategy = Field(description="with every default written out")
    seed: int = 0
    stages: tuple[AppliedStage, ...] = ()
    modules: dict[str, ModuleRepresentation] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict, description="tensor name to the stored tensor it shares")
    loads_with: tuple[str, ...] = ("acf", "transformers")


def read_manifest(folder: Path) -> CheckpointManifest | None:
    """The manifest of a checkpoint folder, or None for a plain Hugging Face folder.

    Raises:
        ModelError: when the manifest is there but not readable by this version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        manifest = CheckpointManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(f"{path} is not a checkpoint manifest: {error.errors()[0]['msg']}; rebuild it") from error
    if manifest.format_version > FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {manifest.format_version}, this release reads up to {FORMAT_VERSION}; "
            "update agentic-compression"
        )
    return manifest
