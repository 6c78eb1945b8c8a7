"""Values between worker and tester: a closed set of built-in types in tagged JSON, rebuilt without running any code.

``None``, ``bool``, ``str``, small ``int`` and ``list`` are themselves; other values are objects with one key, the tag.
Frames are a four-byte big-endian length and that many bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

__all__ = [
    "MAX_FRAME_BYTES",
    "ExcessError",
    "Foreign",
    "WireError",
    "decode",
    "encode",
    "frame",
    "parse_frame",
    "receive",
    "send",
    "write",
]

MAX_FRAME_BYTES = 32 << 20
_MAX_DEPTH = 150
_SMALL_INT = 1 << 53


class WireError(ValueError):
    """A value outside the closed set, or bytes that are no message."""


class ExcessError(WireError):
    """A value that is too deep or too long, or stands for one that could not be sent."""


class Foreign:
    """Stands for a value that could not be sent; equals nothing but itself and cannot be iterated or called."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}, which cannot leave the sandbox>"


def encode(value: Any, *, foreign: bool, depth: int = 0) -> Any:
    """``value`` as JSON-able data; what is outside the closed set becomes a tag, or with ``foreign=False`` an error.

    Instances of subclasses are read with the built-in type's own methods, so that they arrive as that type.

    Raises:
        ExcessError: nested deeper than 150 levels (or in itself), or a ``Foreign`` while ``foreign`` is false.
        WireError: of another type while ``foreign`` is false.
    """
    if depth > _MAX_DEPTH:
        raise ExcessError(f"a value nests deeper than {_MAX_DEPTH} levels or contains itself")
    if value is None or value is True or value is False:
        return value

    def items(values: Any) -> list[Any]:
        return [encode(item, foreign=foreign, depth=depth + 1) for item in values]

    for kind, tag, parts in _CONTAINERS:
        if isinstance(value, kind):
            return items(parts(value)) if tag == "" else {tag: items(parts(value))}
    if isinstance(value, dict):
        return {"d": [items(pair) for pair in dict.items(value)]}
    for kind, plain in _PLAIN:
        if isinstance(value, kind):
            return plain(value)
    if foreign:
        return {"x": type(value).__qualname__[:100]}
    if isinstance(value, Foreign):
        raise ExcessError(f"{value!r}, cannot enter it either")
    raise WireError(f"a value of type {type(value).__name__} cannot be handed to the program")


def _encode_int(value: int) -> Any:
    number = int.__add__(value, 0)
    return number if -_SMALL_INT < number < _SMALL_INT else {"i": hex(number)}


_CONTAINERS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (list, "", list.__iter__),
    (tuple, "t", tuple.__iter__),
    (set, "s", set.__iter__),
    (frozenset, "z", frozenset.__iter__),
)
_PLAIN: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, _encode_int),
    (float, lambda value: {"f": float.hex(value)}),
    (complex, lambda value: {"c": [value.real.hex(), value.imag.hex()]}),
    (bytes, lambda value: {"b": bytes.hex(value)}),
    (bytearray, lambda value: {"y": bytearray.hex(value)}),
    (range, lambda value: {"r": [_encode_int(part) for part in (value.start, value.stop, value.step)]}),
    (Fraction, lambda value: {"q": [_encode_int(value.numerator), _encode_int(value.denominator)]}),
    (Decimal, lambda value: {"m": Decimal.__str__(value)}),
)


def decode(data: Any) -> Any:
    """The value that ``encode`` was given, made of plain built-in types alone.

    Raises:
        WireError: the data is not what ``encode`` writes; it may come from a hostile process.
    """
    try:
        return _decode(data, 0)
    except WireError:
        raise
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise WireError(f"malformed value: {type(error).__name__}") from None


def _decode(data: Any, depth: int) -> Any:
    if depth > 2 * _MAX_DEPTH:
        raise WireError("a value nests too deep")
    if data is None or isinstance(data, (bool, int, str)):
        return data
    if isinstance(data, list):
        return [_decode(item, depth + 1) for item in data]
    if not isinstance(data, dict) or len(data) != 1:
        raise WireError("malformed value: not a tagged object")
    ((tag, content),) = data.items()
    if tag in _REBUILD_ITEMS:
        if not isinstance(content, list):
            raise WireError(f"malformed value: tag {tag!r} without a list")
        return _REBUILD_ITEMS[tag]([_decode(item, depth + 1) for item in content])
    if tag in _REBUILD_TEXT and isinstance(content, str):
        return _REBUILD_TEXT[tag](content)
    if tag == "c" and isinstance(content, list):
        real, imaginary = content
        return complex(float.fromhex(real), float.fromhex(imaginary))
    raise WireError(f"malformed value: unknown tag {str(tag)[:20]!r}")


_REBUILD_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple,
    "s": set,
    "z": frozenset,
    "d": dict,
    "r": lambda parts: range(*parts),
    "q": lambda parts: Fraction(*parts),
}
_REBUILD_TEXT: dict[str, Callable[[str], Any]] = {
    "i": lambda text: int(text, 16),
    "f": float.fromhex,
    "b": bytes.fromhex,
    "y": bytearray.fromhex,
    "m": Decimal,
    "x": lambda text: Foreign(text[:100]),
}


def frame(message: Any) -> bytes:
    """A message as one frame.

    Raises:
        ExcessError: too long.
    """
    body = json.dumps(message).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise ExcessError(f"a message of {len(body)} bytes is too long, at most {MAX_FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body


def parse_frame(data: bytes) -> Any:
    """The message of a single frame, None when ``data`` is anything else."""
    if len(data) < 4 or int.from_bytes(data[:4], "big") != len(data) - 4:
        return None
    try:
        return json.loads(data[4:])
    except (ValueError, RecursionError):
        return None


def send(descriptor: int, message: Any) -> None:
    """Write one frame.

    Raises:
        ExcessError: the message is too long; nothing was written.
        OSError: the other end is gone.
    """
    write(descriptor, frame(message))


def write(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, in as many parts as the pipe takes.

    Raises:
        OSError: the other end is gone.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int) -> Any:
    """The next frame's message, or None when the other end closed before one began.

    Raises:
        WireError: too long, cut short, or not JSON.
    """
    head = _read(descriptor, 4)
    if not head:
        return None
    size = int.from_bytes(head, "big")
    if len(head) < 4 or size > MAX_FRAME_BYTES:
        raise WireError("a message is cut short or too long")
    body = _read(descriptor, size)
    if len(body) < size:
        raise WireError("a message is cut short")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise WireError("a message is not JSON") from None


def _read(descriptor: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = os.read(descriptor, min(size, 1 << 16))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
