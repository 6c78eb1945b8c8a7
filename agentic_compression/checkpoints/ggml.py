"""ggml's quantizers: the functions with which llama.cpp itself makes a GGUF file's blocks, called through ctypes.

They are exported by the shared object of the ``xllamacpp`` wheel, so a file written here holds what llama.cpp's own
tool would have written for the same weights.
"""

from __future__ import annotations

import ctypes
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError, UnavailableError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GGML_TYPES", "block_width", "quantize_rows", "row_bytes"]

GGML_TYPES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ2_XXS": 16,
    "IQ2_XS": 17,
    "IQ3_XXS": 18,
    "IQ4_NL": 20,
    "IQ3_S": 21,
    "IQ2_S": 22,
    "IQ4_XS": 23,
    "BF16": 30,
}
"""Numbers of ``enum ggml_type`` in ggml.h; they are part of the file format and do not change."""

_BLOCK_WIDTHS = {
    name: 1
    if name in ("F32", "F16", "BF16")
    else 32
    if name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
    else 256
    for name in GGML_TYPES
}
_ROWS_AT_ONCE = 1 << 20  # weights quantized by one call: 4 MiB of float32 for each thread
_LEAST_IMPORTANCE = 1e-6


def block_width(type_name: str) -> int:
    """Weights in one block of a type: what a row's width must be divisible by."""
    return _BLOCK_WIDTHS[type_name]


def row_bytes(type_name: str, width: int) -> int:
    """Bytes of one row of ``width`` weights."""
    return int(_library().ggml_row_size(GGML_TYPES[type_name], width))


def quantize_rows(
    weight: Any,
    type_name: str,
    rows: NDArray[np.int64],
    importance: NDArray[np.float32] | None = None,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Blocks of a weight, a part of its rows at a time, so that no second copy of it in float32 is made.

    Every row is quantized by itself, so neither parts nor threads change a bit of the result.

    Args:
        weight: tensor ``(out_features, in_features)``, any floating-point type.
        type_name: a key of :data:`GGML_TYPES`.
        rows: which row of the weight comes where, ``(out_features,)``.
        importance: mean squared input, ``(in_features,)``; None weighs all columns as the type's own rule does.
        threads: parts at once.

    Returns:
        ``(out_features, bytes of a row)``.

    Raises:
        CompressionError: when the width does not fit, or a value is not finite or beyond what the type can hold.
    """
    import numpy as np
    import torch

    width = int(weight.shape[1])
    if width % block_width(type_name):
        raise CompressionError(
            f"{type_name} needs rows of a multiple of {block_width(type_name)} weights, got {width}; use Q8_0 or F16"
        )
    weighing = _weighing(importance, width)
    result = np.empty((len(rows), row_bytes(type_name, width)), dtype=np.uint8)
    index = torch.from_numpy(rows)
    step = max(1, _ROWS_AT_ONCE // width)

    def part(start: int) -> None:
        some = weight.detach()[index[start : start + step]].to("cpu", torch.float32).contiguous().numpy()
        _quantize(some, result[start : start + step], type_name, weighing)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for _ in pool.map(part, range(0, len(rows), step)):
            pass
    return result


def _weighing(importance: NDArray[np.float32] | None, width: int) -> NDArray[np.float32] | None:
    """The importance as ggml takes it: finite, and nowhere zero, at which some of its searches abort the process."""
    import numpy as np

    if importance is None:
        return None
    values = np.ascontiguousarray(importance, dtype=np.float32)
    if values.shape != (width,) or not np.isfinite(values).all() or (values < 0).any():
        raise CompressionError(
            f"the importance must be {width} finite squares, got shape {values.shape} with "
            f"{int(np.count_nonzero(~np.isfinite(values)))} not finite; check the model's activations"
        )
    mean = float(values.mean(dtype=np.float64))
    return np.maximum(values, _LEAST_IMPORTANCE * mean) if mean > 0 else np.ones_like(values)


def _quantize(
    values: NDArray[np.float32], out: NDArray[np.uint8], type_name: str, importance: NDArray[np.float32] | None
) -> None:
    import numpy as np

    if not np.isfinite(values).all():
        raise CompressionError("the weight holds NaN or infinity, which no GGUF type can; use another model")
    number = GGML_TYPES[type_name]
    weighing = None if importance is None else importance.ctypes.data
    library = _library()
    written = library.ggml_quantize_chunk(
        number, values.ctypes.data, out.ctypes.data, 0, values.shape[0], values.shape[1], weighing
    )
    if written != out.nbytes or not library.ggml_validate_row_data(number, out.ctypes.data, out.nbytes):
        largest = float(np.abs(values).max())
        raise CompressionError(
            f"{type_name} cannot hold a weight of {largest:.3g} (16-bit scales end at 65504); use BF16 or F32"
        )


@cache
def _library() -> Any:
    """The shared object, with the functions used here declared; its Python module is not imported."""
    spec = importlib.util.find_spec("xllamacpp")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("xllamacpp*.so"))]
    if not files:
        raise UnavailableError("GGUF types need ggml's quantizers, which are not installed; pip install xllamacpp")
    library = ctypes.CDLL(str(files[0]))
    size, number, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    library.ggml_row_size.argtypes, library.ggml_row_size.restype = [number, size], ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [number, pointer, pointer, size, size, size, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = [number, pointer, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library
