from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from agentic_compression.errors import ModelError
from agentic_compression.spec.safetensors_header import read_header, read_integers

_NUMPY = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I8": np.int8,
          "U8": np.uint8, "BOOL": np.bool_}  # fmt: skip
_names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
_shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
_tensors = st.dictionaries(
    _names.filter(lambda name: name != "__metadata__"), st.tuples(st.sampled_from(sorted(_NUMPY)), _shapes), max_size=6
)
_quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _library_reads(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)
    except (SafetensorError, ValueError, TypeError, AttributeError):
        return False
    return True


@_quick
@given(content=_tensors)
def test_read_header_agrees_with_the_safetensors_library(tmp_path: Path, content: dict) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: np.ones(shape, _NUMPY[dtype]) for name, (dtype, shape) in content.items()}, path)

    ours = read_header(path)

    with safe_open(path, "np") as file:
        assert set(ours) == set(file.keys())
        for name, tensor in ours.items():
            assert list(tensor.shape) == file.get_slice(name).get_shape()
            assert tensor.dtype == file.get_slice(name).get_dtype()
            with path.open("rb") as raw:
                raw.seek(tensor.begin)
                assert raw.read(tensor.size_bytes) == file.get_tensor(name).tobytes()


@_quick
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 60))
def test_read_header_refuses_whatever_the_library_refuses_when_bytes_are_damaged(
    tmp_path: Path, position: int, byte: int, cut: int
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((3, 2), np.float32), "b": np.ones(5, np.int64)}, path)
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] = byte
    path.write_bytes(raw[: len(raw) - cut])

    if not _library_reads(path):
        with pytest.raises(ModelError):
            read_header(path)


@_quick
@given(cut=st.integers(1, 200))
def test_read_header_refuses_a_truncated_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((3, 2), np.float32)}, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: max(0, len(raw) - cut)])
    with pytest.raises(ModelError, match="corrupt or incomplete"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}', 8, "not valid"),
        (b'[1]', 0, "does not start with"),
        (b'{"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}}', 8, "unknown dtype"),
        (b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', 8, "shape"),
        (b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', 8, "needs 12 bytes"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 9, "truncated"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', 8, "expected"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
         b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', 12, "expected"),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
         b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1, "twice"),
    ],
)  # fmt: skip
def test_read_header_names_the_problem(tmp_path: Path, header: bytes, data: int, reason: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * data)
    with pytest.raises(ModelError, match=reason):
        read_header(path)
    assert reason == "twice" or not _library_reads(path)  # the library takes the last of two equal names


def test_read_header_does_not_read_a_header_longer_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ModelError, match="claims"):
        read_header(path)


def test_read_integers_gives_the_stored_values(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"s": np.array([48, 32], np.int64), "t": np.array([7, 9], np.int32)}, path)
    tensors = read_header(path)
    assert read_integers(path, tensors["s"]) == (48, 32)
    assert read_integers(path, tensors["t"]) == (7, 9)
