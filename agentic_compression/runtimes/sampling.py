"""From logits to tokens, and from tokens to text that may be shown: the same for every engine that gives logits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import CompressionError
from agentic_compression.runtimes.interface import GenerationOptions, Piece

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TextStream", "cut_at_stop", "pick_token", "stream_pieces"]

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def pick_token(logits: NDArray[np.float32], options: GenerationOptions, generator: np.random.Generator) -> int:
    """The most likely token, or a draw at ``temperature`` from the nucleus of probability ``top_p``.

    Nucleus sampling: Holtzman et al. 2020 (arXiv 1904.09751), section 3.1.

    Raises:
        CompressionError: when a logit is NaN.
    """
    import numpy as np

    best = int(logits.argmax())
    if np.isnan(logits[best]):  # argmax of an array with NaN is a NaN's place
        raise CompressionError(
            "the checkpoint's logits must be numbers, got NaN; the compression broke the model: use another checkpoint"
        )
    if options.temperature <= 0:
        return best
    scaled = (logits.astype(np.float64) - float(logits[best])) / options.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    cumulative = np.cumsum(probabilities[order])
    kept = int(np.searchsorted(cumulative, min(options.top_p, cumulative[-1]))) + 1
    place = np.searchsorted(cumulative[:kept], generator.random() * cumulative[kept - 1], side="right")
    return int(order[min(int(place), kept - 1)])


def cut_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the stop string that begins first in it; stop strings may overlap."""
    places = (text.find(stop) for stop in stop_strings if stop)
    return text[: min((place for place in places if place >= 0), default=len(text))]


class TextStream:
    """Turns a growing list of tokens into text that never has to be taken back.

    A token's text is the difference that it makes to the decoded end of the answer, because a tokenizer may decode it
    otherwise alone. Held back are characters that are not complete yet and what may be the beginning of a stop string.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stop_strings if stop]
        self._ids: list[int] = []
        self._shown, self._read = 0, 0
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """Add a token.

        Returns:
            The text that became final, and whether a stop string was completed (the text then ends before it).
        """
        self._ids.append(token)
        before, after = self._decode(self._ids[self._shown : self._read]), self._decode(self._ids[self._shown :])
        if after.endswith(_INCOMPLETE):
            return "", False
        self._shown, self._read = self._read, len(self._ids)
        text = self._held + after[len(before) :]
        cut = cut_at_stop(text, self._stops)
        if len(cut) < len(text):
            self._held = ""
            return cut, True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """What was held back and is final now that no token follows."""
        before, after = self._decode(self._ids[self._shown : self._read]), self._decode(self._ids[self._shown :])
        text, self._held = self._held + after[len(before) :], ""
        self._shown = self._read = len(self._ids)
        return cut_at_stop(text, self._stops)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


def stream_pieces(
    logits: NDArray[np.float32],
    step: Callable[[int], NDArray[np.float32]],
    tokenizer: Any,
    ends: Collection[int],
    options: GenerationOptions,
) -> Iterator[Piece]:
    """Generate one answer.

    Args:
        logits: after the prompt, ``(vocabulary,)``.
        step: runs one token and returns the logits after it.
        tokenizer: for the text.
        ends: tokens that end the answer, besides ``options.stop_ids``.
        options: length, stops and sampling.
    """
    import numpy as np

    generator, text = np.random.default_rng(options.seed), TextStream(tokenizer, options.stop_strings)
    for number in range(1, options.new_tokens + 1):
        token = pick_token(logits, options, generator)
        if token in ends or token in options.stop_ids:
            yield Piece(token, text.finish(), "stop")
            return
        shown, stopped = text.push(token)
        if stopped:
            yield Piece(token, shown, "stop")
            return
        if number == options.new_tokens:
            yield Piece(token, shown + text.finish(), "length")
            return
        yield Piece(token, shown)
        logits = step(token)
