"""Reading and writing safetensors files without a second copy in memory."""

from __future__ import annotations

import io
import json
import math
import stat
import threading
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from agentic_compression.errors import ModelError

__all__ = ["SHARD_BYTES", "TensorFile", "save_tensors", "write_tensors"]

SHARD_BYTES = 1_000_000_000
_MAXIMUM_HEADER = 100_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
}


class TensorFile:
    """One open safetensors file; a tensor is read straight into memory of its own when asked for.

    A memory map would keep every page that was read in the process's resident size until the last tensor of the file
    is gone, which would count packed weights twice. Use as a context manager; threads may read at the same time.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and read its header.

        Raises:
            ModelError: when the file is cut short or not in the safetensors format.
        """
        self.path = path
        self._file: io.BufferedReader = path.open("rb")
        try:
            length = int.from_bytes(self._file.read(8), "little")
            if length > _MAXIMUM_HEADER:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(self._file.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if path.stat().st_size != 8 + length + end:
                raise ValueError(f"it has {path.stat().st_size} bytes instead of {8 + length + end}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._file.close()
            raise ModelError(
                f"{path} must be a complete safetensors file: {error}; download or build it again"
            ) from error
        self._start = 8 + length
        self._header = header
        self._reading = threading.Lock()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stored tensors, in the order of the file."""
        return tuple(self._header)

    def read(self, name: str) -> torch.Tensor:
        """One tensor in its stored dtype.

        Raises:
            ModelError: when its dtype is not one this release reads.
        """
        entry = self._header[name]
        begin, end = entry["data_offsets"]
        dtype = self.dtype(name)
        if not 0 <= begin <= end or any(size < 0 for size in entry["shape"]):
            raise ModelError(f"{name} in {self.path} lies at {begin} to {end}; download or build the file again")
        if math.prod(entry["shape"]) * dtype.itemsize != end - begin:
            raise ModelError(
                f"{name} in {self.path} must have {end - begin} bytes, its shape {entry['shape']} says otherwise; "
                "download or build the file again"
            )
        tensor = torch.empty(entry["shape"], dtype=dtype)
        if tensor.numel():
            with self._reading:
                self._file.seek(self._start + entry["data_offsets"][0])
                self._file.readinto(tensor.view(-1).view(torch.uint8).numpy())
        return tensor

    def dtype_name(self, name: str) -> str:
        """The stored dtype in the words of the format, ``BF16``."""
        return str(self._header[name]["dtype"])

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype.

        Raises:
            ModelError: when it is not one this release reads.
        """
        dtype = _DTYPES.get(self.dtype_name(name))
        if dtype is None:
            raise ModelError(f"{name} in {self.path} must be one of {', '.join(_DTYPES)}, got {self.dtype_name(name)}")
        return dtype


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write one safetensors file with the mode that ``open`` gives; safetensors itself may make it its owner's only.

    Args:
        tensors: contiguous tensors by name, no two sharing memory.
        path: the file; an empty one is left when writing fails.
        metadata: texts for its header.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def write_tensors(groups: Iterable[dict[str, torch.Tensor]], folder: Path, stem: str = "model") -> None:
    """Write ``<stem>.safetensors``, or shards of about 1 GB with ``<stem>.safetensors.index.json``.

    Groups are asked for one at a time and let go once their shard is written, so that tensors made for storing need no
    more than a shard's memory.

    Args:
        groups: contiguous tensors by name, no two sharing memory.
        folder: an existing folder.
        stem: start of the file names.
    """
    shard: dict[str, torch.Tensor] = {}
    written: list[dict[str, int]] = []  # bytes by name, by shard

    def flush() -> None:
        save_tensors(dict(sorted(shard.items())), folder / _shard_name(stem, len(written)), {"format": "pt"})
        written.append({name: tensor.nbytes for name, tensor in shard.items()})
        shard.clear()

    for group in groups:
        if shard and sum(tensor.nbytes for tensor in (*shard.values(), *group.values())) > SHARD_BYTES:
            flush()
        shard.update(group)
        del group
    if shard or not written:
        flush()
    if len(written) == 1:
        (folder / _shard_name(stem, 0)).rename(folder / f"{stem}.safetensors")
        return
    names = {}
    for index, sizes in enumerate(written):
        name = f"{stem}-{index + 1:05d}-of-{len(written):05d}.safetensors"
        (folder / _shard_name(stem, index)).rename(folder / name)
        names.update(dict.fromkeys(sizes, name))
    total = sum(size for sizes in written for size in sizes.values())
    index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=2, sort_keys=True)
    (folder / f"{stem}.safetensors.index.json").write_text(index_text + "\n")


def _shard_name(stem: str, index: int) -> str:
    return f"{stem}.{index}.safetensors"
