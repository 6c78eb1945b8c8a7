"""Which errors mean that memory ran out, and turning them into one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_out_of_memory", "memory_errors"]

# The CPU allocator of torch, C++, CUDA and its libraries raise a RuntimeError with these words.
_WORDS = ("can't allocate memory", "out of memory", "bad_alloc", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether this error, or one that caused it, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS):
            return True
        error = error.__cause__
    return False


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise whatever says that memory ran out as MemoryError; all else passes."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError((str(error).splitlines() or ["memory ran out"])[0]) from error
        raise
