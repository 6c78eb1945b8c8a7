from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.errors import CompressionError
from agentic_compression.runtimes import GenerationOptions
from agentic_compression.runtimes.sampling import TextStream, cut_at_stop, pick_token, stream_pieces
from tests.unit.methods.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
texts = st.text(alphabet=st.sampled_from("ab \n.é€𝄞日"), max_size=20)
stops = st.lists(st.text(alphabet=st.sampled_from("ab \n.é"), min_size=1, max_size=3), max_size=3)


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@given(texts, stops)
@settings(max_examples=200, deadline=None)
def test_a_stream_shows_the_text_before_the_first_stop(text: str, stop_strings: list[str]) -> None:
    """Token by token (bytes here, so that characters come in parts), never to be taken back."""
    stream, shown = TextStream(TOKENIZER, stop_strings), ""
    for token in ids_of(text):
        piece, stopped = stream.push(token)
        assert "\N{REPLACEMENT CHARACTER}" not in piece
        shown += piece
        assert text.startswith(shown)
        if stopped:
            break
    else:
        shown += stream.finish()
    prefixes = (text[:size] for size in range(len(text) + 1))
    first = next((part for part in prefixes if any(stop in part for stop in stop_strings)), None)
    assert shown == (text if first is None else before_any(first, stop_strings))


def before_any(text: str, stop_strings: list[str]) -> str:
    """By the definition: the longest beginning after which no stop string begins, at whatever place before its end."""
    places = (size for size in range(len(text)) if any(text[size:].startswith(stop) for stop in stop_strings))
    return text[: next(places, len(text))]


@given(texts, stops)
@settings(max_examples=200, deadline=None)
def test_a_text_is_cut_before_the_earliest_stop(text: str, stop_strings: list[str]) -> None:
    assert cut_at_stop(text, stop_strings) == before_any(text, stop_strings)


@pytest.mark.parametrize("stop_strings", [("b", "ab"), ("ab", "b"), ("", "b", "ab")])
def test_overlapping_stops_cut_before_the_one_that_begins_first(stop_strings: tuple[str, ...]) -> None:
    assert cut_at_stop("xab", stop_strings) == "x"
    stream = TextStream(TOKENIZER, stop_strings)
    assert [stream.push(token) for token in ids_of("xab")] == [("x", False), ("", False), ("", True)]


def test_an_incomplete_character_is_shown_at_the_end() -> None:
    stream = TextStream(TOKENIZER, [])
    assert stream.push(ids_of("é")[0]) == ("", False)
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


class Joined:
    """A tokenizer whose tokens are these bytes."""

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = tokens

    def decode(self, ids: list[int], **_: bool) -> str:
        return b"".join(self.tokens[token] for token in ids).decode(errors="replace")


def test_what_is_held_back_to_the_end_is_cut_too() -> None:
    """A token that completes a stop string and begins a character."""
    stream = TextStream(Joined(b"xa", "bé".encode()[:2]), ["b", "ab"])
    assert [stream.push(0), stream.push(1)] == [("x", False), ("", False)]
    assert stream.finish() == ""


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> dict[int, float]:
    """By the definition: the most likely tokens until their probability reaches ``top_p``."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    probabilities = weights / weights.sum()
    kept: dict[int, float] = {}
    for token in sorted(range(len(logits)), key=lambda index: -probabilities[index]):
        kept[token] = float(probabilities[token])
        if sum(kept.values()) >= top_p:
            break
    total = sum(kept.values())
    return {token: weight / total for token, weight in kept.items()}


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.6), (2.0, 0.9), (0.3, 0.99)])
def test_draws_follow_the_nucleus(temperature: float, top_p: float) -> None:
    logits = np.asarray([2.0, -1.0, 0.5, 1.5, -3.0, 0.0], dtype=np.float32)
    options = GenerationOptions(new_tokens=1, temperature=temperature, top_p=top_p)
    generator = np.random.default_rng(0)
    drawn = [pick_token(logits, options, generator) for _ in range(4000)]
    expected = nucleus(logits, temperature, top_p)
    assert set(drawn) <= set(expected)
    for token, share in expected.items():
        assert drawn.count(token) / 4000 == pytest.approx(share, abs=0.03)


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = np.asarray([0.1, 3.0, -2.0], dtype=np.float32)
    assert pick_token(logits, GenerationOptions(new_tokens=1), np.random.default_rng(0)) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_refused(temperature: float) -> None:
    logits = np.asarray([0.1, np.nan, -2.0], dtype=np.float32)
    with pytest.raises(CompressionError, match="got NaN"):
        pick_token(logits, GenerationOptions(new_tokens=1, temperature=temperature), np.random.default_rng(0))


def scripted(ids: list[int]) -> Iterator[np.ndarray]:
    for token in itertools.chain(ids, itertools.repeat(5)):
        logits = np.zeros(258, dtype=np.float32)
        logits[token] = 9.0
        yield logits


@pytest.mark.parametrize(
    ("text", "ends", "stop_strings", "shown", "finish"),
    [
        ("hello", [], (), "hello", "length"),
        ("he</s>lo", [1], (), "he", "stop"),
        ("hello", [], ("ll",), "he", "stop"),
        ("hella", [], ("ab",), "hella", "length"),
    ],
)
def test_pieces_end_with_their_reason(
    text: str, ends: list[int], stop_strings: tuple[str, ...], shown: str, finish: str
) -> None:
    source = scripted(ids_of(text))
    options = GenerationOptions(new_tokens=5, stop_strings=stop_strings)
    pieces = list(stream_pieces(next(source), lambda _: next(source), TOKENIZER, ends, options))
    assert "".join(piece.text for piece in pieces) == shown
    assert pieces[-1].finish == finish
    assert all(piece.finish is None for piece in pieces[:-1])
