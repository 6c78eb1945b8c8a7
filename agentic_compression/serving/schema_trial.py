"""Tries a JSON schema out in a process of its own, where it can neither hang nor exhaust anything that matters.

A few keywords (``multipleOf`` under ``allOf`` is one) make compiling a grammar run for hours. So every schema that was
not seen before is compiled here first, over the 256 bytes as vocabulary, and walked through at random for a while.

``python -m agentic_compression.serving.schema_trial`` reads a schema from standard input and writes what is wrong with
it, or nothing.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentic_compression.serving.engine import EngineBusyError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

__all__ = ["SCHEMA_OPTIONS", "TRIAL_SECONDS", "compile_schema", "plain_reason", "try_schema"]

TRIAL_SECONDS = 2
_PATIENCE_S = 30.0
_MEMORY_BYTES = 1 << 31
_STEPS = 300
_STRUCTURE = b'"}],:0'
_LIMITS: dict[str, Any] = {
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "step_lexer_fuel": 200_000,
    "verbose_errors": False,
}
# A schema may carry options for its compiler; these are not the client's to set. Whitespace is bounded, because a
# small model writes all the blanks that it may: one, or a new line with room for the usual indents.
SCHEMA_OPTIONS: JsonCompileOptions = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ ]|\n[ ]{0,8}",
    "coerce_one_of": False,
    "lenient": False,
}


def compile_schema(schema: str, tokenizer: LLTokenizer) -> LLMatcher:
    """The matcher of a schema at its beginning.

    Raises:
        ValueError: when it cannot be compiled, with the reason.
    """
    from llguidance import LLMatcher, LLParserLimits

    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=SCHEMA_OPTIONS)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**_LIMITS))
    if matcher.is_error():
        raise ValueError(plain_reason(matcher))
    return matcher


def plain_reason(matcher: LLMatcher) -> str:
    """Why a matcher failed, in one line."""
    text = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:300]
    return "nothing that can be written keeps to it" if text.startswith("NoExtension") or not text else text


def try_schema(schema: str, run: Callable[..., Any] = subprocess.run) -> str | None:
    """What is wrong with a schema, or None. ``TRIAL_SECONDS`` of a core are the limit.

    Raises:
        EngineBusyError: when the machine had no time or no memory for it, which says nothing of the schema.
    """
    command = [sys.executable, "-m", "agentic_compression.serving.schema_trial"]
    try:
        done = run(command, input=schema.encode(), capture_output=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineBusyError("a JSON schema must be tried out first, got no time for it; send it later") from error
    if done.returncode == -signal.SIGXCPU:
        return f"it takes more than {TRIAL_SECONDS} s to compile"
    if done.returncode:
        raise EngineBusyError(f"a JSON schema must be tried out first, got exit code {done.returncode}; send it later")
    return str(done.stdout.decode("utf-8", "replace")) or None


def _walk(matcher: LLMatcher, generator: random.Random) -> None:
    for _ in range(_STEPS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [byte for byte in range(256) if mask >> byte & 1]
        if matcher.is_error() or matcher.is_stopped() or not allowed:
            break
        closing = [byte for byte in allowed if byte in _STRUCTURE]
        matcher.consume_token(generator.choice(closing if closing and generator.random() < 0.5 else allowed))
    if matcher.is_error():
        raise ValueError(plain_reason(matcher))


class _Bytes:
    """A vocabulary of the 256 bytes and an end."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _main() -> None:
    import resource

    from llguidance import LLTokenizer, TokenizerWrapper

    resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_SECONDS, TRIAL_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    schema = sys.stdin.read()
    try:
        matcher = compile_schema(schema, LLTokenizer(TokenizerWrapper(_Bytes()), slices=[]))
        for seed in range(2):
            _walk(matcher.deep_copy(), random.Random(seed))  # noqa: S311 - explores, hides nothing
    except ValueError as error:
        sys.stdout.write(" ".join(str(error).split())[:300] or "it is no JSON schema")
    except MemoryError:
        sys.stdout.write("it takes more memory to compile than is allowed")


if __name__ == "__main__":
    _main()
