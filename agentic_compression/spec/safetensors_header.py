"""Read and check the header of a safetensors file without reading its weights.

Layout (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, that many bytes of JSON
``{name: {dtype, shape, data_offsets: [begin, end]}}``, then one buffer that the tensors cover without gap or overlap.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentic_compression.errors import ModelError

__all__ = ["DTYPE_BITS", "DTYPE_NAMES", "TensorHeader", "parse_header", "read_header", "read_integers"]

_MAXIMUM_HEADER = 100_000_000  # the limit of the reference implementation
DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
DTYPE_NAMES: Mapping[str, str] = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3", "F8_E5M2": "float8_e5m2", "F4": "float4",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """One tensor as its header describes it; offsets are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """Stored elements (1 for a scalar)."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of data."""
        return self.end - self.begin


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Tensors of one safetensors file, checked against the file's size.

    Raises:
        ModelError: when the file is truncated or its header is not valid.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise _corrupt(path, f"it has {size} bytes and even the header length needs 8")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAXIMUM_HEADER, size - 8):
            raise _corrupt(path, f"its header claims {length} bytes and the file has {size}")
        raw = file.read(length)
    return parse_header(raw, data_bytes=size - 8 - length, path=path)


def parse_header(raw: bytes, *, data_bytes: int, path: Path) -> dict[str, TensorHeader]:
    """Parse header JSON and check every entry: known dtype, sizes that fit, no gap, no overlap, nothing left over.

    Args:
        raw: the JSON bytes after the 8-byte length.
        data_bytes: bytes of the buffer that follows the header.
        path: named in errors.

    Raises:
        ModelError: when the header is not valid.
    """
    try:
        if not raw.startswith(b"{"):
            raise ValueError("it does not start with '{'")
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        start = 8 + len(raw)
        tensors = {name: _tensor(name, entry, start) for name, entry in entries.items()}
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not valid: {error}") from None
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position:
            raise _corrupt(path, f"tensor {name!r} starts at byte {tensor.begin}, expected {position}")
        position = tensor.end
    if position != start + data_bytes:
        raise _corrupt(
            path, f"its tensors need {position:,} bytes and the file has {start + data_bytes:,} (truncated?)"
        )
    return tensors


def read_integers(path: Path, tensor: TensorHeader) -> tuple[int, ...]:
    """Values of a small integer tensor such as ``weight_shape`` (at most 64 elements).

    Raises:
        ModelError: when it is no small I32 or I64 tensor.
    """
    code = {"I32": "i", "I64": "q"}.get(tensor.dtype)
    if code is None or not 0 < tensor.elements <= 64:
        raise _corrupt(path, f"a weight_shape must be a small I32 or I64 tensor, got {tensor.dtype} {tensor.shape}")
    with path.open("rb") as file:
        file.seek(tensor.begin)
        return struct.unpack(f"<{tensor.elements}{code}", file.read(tensor.size_bytes))


def _tensor(name: str, entry: Any, start: int) -> TensorHeader:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"tensor {name!r} has unknown dtype {dtype!r}")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} has shape {shape!r} and data_offsets {offsets!r}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise ValueError(f"tensor {name!r} ({dtype} {shape}) needs {bits / 8:g} bytes, got {offsets[1] - offsets[0]}")
    return TensorHeader(dtype=dtype, shape=tuple(shape), begin=start + offsets[0], end=start + offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError("a name appears twice")
    return dict(pairs)


def _corrupt(path: Path, reason: str) -> ModelError:
    return ModelError(f"{path} is corrupt or incomplete: {reason}; copy or download this file again")
