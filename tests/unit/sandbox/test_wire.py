"""Values survive the pipe with their types; nothing but plain values comes out, whatever goes in."""

from __future__ import annotations

import enum
import json
import os
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentic_compression.sandbox.inside import wire

_HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.fractions(),
    st.decimals(allow_nan=False),
    st.builds(range, st.integers(-5, 5), st.integers(-5, 5), st.integers(1, 3)),
)
_VALUES = st.recursive(
    st.one_of(_HASHABLE, st.binary().map(bytearray)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_HASHABLE, inner, max_size=4),
        st.sets(_HASHABLE, max_size=4),
        st.frozensets(_HASHABLE, max_size=4),
    ),
    max_leaves=12,
)
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("tszdrqifbymxc") | st.text(max_size=2), inner)
    ),
    max_leaves=8,
)


def through(value: Any) -> Any:
    return wire.decode(json.loads(json.dumps(wire.encode(value, foreign=True))))


@given(_VALUES)
def test_values_arrive_equal_and_of_the_same_type(value: Any) -> None:
    assert (
        repr(sorted(through(value), key=repr)) == repr(sorted(value, key=repr))
        if isinstance(value, (set, frozenset))
        else shape(through(value)) == shape(value)
    )


def shape(value: Any) -> Any:
    """Type and content down to the leaves; sets in a fixed order, NaN by its text."""
    if isinstance(value, dict):
        return "dict", [(shape(key), shape(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [shape(item) for item in value]
    return type(value).__name__, repr(value)


@given(_JSON)
def test_hostile_data_gives_plain_values_or_an_error(data: Any) -> None:
    try:
        found = wire.decode(data)
    except wire.WireError:
        return
    plain = (type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range)
    assert type(found) in (*plain, Fraction, Decimal, wire.Foreign)


def test_subclasses_arrive_as_the_plain_type() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Colour(enum.IntEnum):
        RED = 3

    pair = namedtuple("pair", "a b")
    for value, plain in [
        (Liar(3), 3),
        (Colour.RED, 3),
        (pair(1, 2), (1, 2)),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
    ]:
        found = through(value)
        assert type(found) is type(plain)
        assert found == plain


def test_other_objects_equal_nothing() -> None:
    class Yes:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = object.__hash__

    found = through([Yes()])[0]
    assert isinstance(found, wire.Foreign)
    assert found != 1
    assert found is not None
    with pytest.raises(wire.WireError, match="type Yes cannot be handed to the program"):
        wire.encode(Yes(), foreign=False)


def test_nesting_without_end_is_an_error() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(wire.WireError, match="nests deeper"):
        wire.encode(endless, foreign=True)
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(wire.WireError, match="nests too deep"):
        wire.decode(deep)


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\5{}", b"\xff\xff\xff\xff", b"\0\0\0\2]]", b"\0\0\0\2\xff\xff"])
def test_broken_frames_are_errors(data: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    with pytest.raises(wire.WireError):
        wire.receive(reading)
    os.close(reading)
    assert wire.parse_frame(data) is None


def test_frames_follow_each_other_and_an_end_is_none() -> None:
    reading, writing = os.pipe()
    wire.send(writing, {"a": [1]})
    wire.send(writing, None)
    wire.send(writing, "b")
    os.close(writing)
    assert [wire.receive(reading) for _ in range(4)] == [{"a": [1]}, None, "b", None]
    os.close(reading)
