"""What runs a checkpoint: transformers, llama.cpp or vLLM behind one Protocol.

``open_runtime`` decides by what the folder holds, so that a checkpoint is measured by the engine that will serve it.
Importing this package imports neither torch nor an engine.
"""

from agentic_compression.runtimes.interface import (
    Completion,
    DocumentScore,
    GenerationOptions,
    MemoryUse,
    Piece,
    Runtime,
    TimedBatch,
    TimedRequest,
    TokenCost,
    TokenPair,
)
from agentic_compression.runtimes.select import llama_file, open_runtime, runtime_kind, runtime_version

__all__ = [
    "Completion",
    "DocumentScore",
    "GenerationOptions",
    "MemoryUse",
    "Piece",
    "Runtime",
    "TimedBatch",
    "TimedRequest",
    "TokenCost",
    "TokenPair",
    "llama_file",
    "open_runtime",
    "runtime_kind",
    "runtime_version",
]
