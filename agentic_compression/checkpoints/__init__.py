"""How a compressed model is written, read and run.

A checkpoint is a folder: ``config.json``, ``generation_config.json``, tokenizer files, ``model.safetensors`` (or shards
with an index; ``acf_model.safetensors`` when only this package can load them; ``model.gguf`` for llama.cpp) and
``acf_checkpoint.json``, the manifest that says how every compressed module is stored. Importing this package does not
import torch.
"""

from agentic_compression.checkpoints.folders import checkpoint_ref, new_folder, shipped_files
from agentic_compression.checkpoints.load import LoadedCheckpoint, load_checkpoint, preload_runtime
from agentic_compression.checkpoints.manifest import (
    MANIFEST_NAME,
    AppliedStage,
    BitmaskModule,
    CheckpointManifest,
    LowRankModule,
    ModuleRepresentation,
    PackedModule,
    read_manifest,
)
from agentic_compression.checkpoints.save import CheckpointOrigin, save_checkpoint

__all__ = [
    "MANIFEST_NAME",
    "AppliedStage",
    "BitmaskModule",
    "CheckpointManifest",
    "CheckpointOrigin",
    "LoadedCheckpoint",
    "LowRankModule",
    "ModuleRepresentation",
    "PackedModule",
    "checkpoint_ref",
    "load_checkpoint",
    "new_folder",
    "preload_runtime",
    "read_manifest",
    "save_checkpoint",
    "shipped_files",
]
