"""Keeps answers to a JSON schema: masks over the vocabulary, for whichever engine gives the logits.

A schema becomes a grammar (llguidance), and a grammar says after every token which may follow. That is computed in
threads while the model computes, so that requests without a schema never wait for it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from agentic_compression.errors import AcfError
from agentic_compression.serving.engine import PromptError
from agentic_compression.serving.schema_trial import compile_schema, plain_reason, try_schema
from agentic_compression.serving.structured import JSON_OBJECT

if TYPE_CHECKING:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

__all__ = ["Grammar", "GrammarError", "GrammarReader"]

_KEPT = 64
_PATIENCE_S = 15.0
_THREADS = 2


class GrammarError(AcfError):
    """A schema that turned out too complex while the answer was written."""


class Grammar:
    """What may follow in one answer. Used from one thread, but for the masks.

    Args:
        matcher: at the answer's beginning; this object's own.
        threads: compute the masks.
    """

    def __init__(self, matcher: LLMatcher, threads: ThreadPoolExecutor) -> None:
        self._matcher, self._threads = matcher, threads
        self._mask: Future[bytes] = threads.submit(matcher.compute_bitmask)
        self._asked = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether the next mask is there, or will never be."""
        return self._mask.done() or time.monotonic() - self._asked > _PATIENCE_S

    def wait(self, seconds: float) -> None:
        """Until the mask is there, so long at most."""
        wait([self._mask], seconds)

    def mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits, minus infinity where the grammar does not allow the token.

        Raises:
            GrammarError: when the schema is too complex to go on.
        """
        import numpy as np

        if not self._mask.done():
            raise GrammarError(f"the JSON schema must allow the next token to be found within {_PATIENCE_S:g} s")
        packed = np.frombuffer(self._mask.result(), dtype=np.uint8)
        self._check()
        allowed = np.zeros(len(logits), dtype=bool)
        bits = np.unpackbits(packed, bitorder="little")[: len(logits)]
        allowed[: len(bits)] = bits
        if not allowed.any():
            raise GrammarError("the JSON schema must leave a token to go on with, got a dead end")
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> bool:
        """Go on after a token; whether the answer is complete, and nothing more may follow.

        Raises:
            GrammarError: when the schema is too complex to go on.
        """
        self._matcher.consume_token(token)
        self._check()
        if self._matcher.is_stopped():
            return True
        self._asked = time.monotonic()
        self._mask = self._threads.submit(self._matcher.compute_bitmask)
        return False

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the JSON schema must be simple enough to follow, got: {plain_reason(self._matcher)}")


class GrammarReader:
    """Compiles schemas for one model and keeps the last ones, with what was wrong with those that were refused.

    Args:
        tokenizer: of the model.
        ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int]) -> None:
        self._tokenizer, self._ends = tokenizer, sorted(ends)
        self._vocabulary: LLTokenizer | None = None
        self._known: OrderedDict[str, LLMatcher | str] = OrderedDict()
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, "grammar")

    def knows(self, schema: str) -> bool:
        """Whether opening it again takes no time."""
        with self._lock:
            return schema in self._known

    def open(self, schema: str) -> Grammar:
        """The grammar of a schema. A new schema is tried out first, which takes some tenths of a second.

        Raises:
            PromptError: when it cannot be compiled, with the reason; when this cannot be done here at all.
        """
        with self._lock:
            found = self._known.get(schema)
        if found is None:
            found = self._compile(schema)
            with self._lock:
                self._known[schema] = found
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
        with self._lock:
            if schema in self._known:
                self._known.move_to_end(schema)
        if isinstance(found, str):
            raise PromptError(
                f"the JSON schema must be one that answers can be kept to, got: {found}; change it",
                "invalid_json_schema",
                "response_format",
            )
        return Grammar(found.deep_copy(), self._threads)

    def _compile(self, schema: str) -> LLMatcher | str:
        vocabulary = self._vocabulary_of_model()
        reason = None if schema == JSON_OBJECT else try_schema(schema)
        if reason is not None:
            return reason
        try:
            return compile_schema(schema, vocabulary)
        except ValueError as error:
            return " ".join(str(error).split())[:300]

    def _vocabulary_of_model(self) -> LLTokenizer:
        """Made when first needed: of a large vocabulary it takes a second."""
        with self._building:
            if self._vocabulary is None:
                self._vocabulary = _read_vocabulary(self._tokenizer, self._ends)
            return self._vocabulary


def _read_vocabulary(tokenizer: Any, ends: list[int]) -> LLTokenizer:
    try:
        from llguidance import LLTokenizer
        from llguidance.hf import from_tokenizer
    except ImportError as error:
        raise _unavailable(f"{error}; install llguidance on the server") from error
    try:
        return from_tokenizer(tokenizer, eos_token=ends or None, slices=LLTokenizer.json_slices())
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _unavailable(f"this model's tokenizer cannot be read for it: {reason}; use another model") from error


def _unavailable(reason: str) -> PromptError:
    return PromptError(
        f"response_format is not available, because {reason}, or leave it out",
        "response_format_unavailable",
        "response_format",
    )
