"""Batches that fit: a batch that ran out of memory is halved, and what fitted is remembered by the process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

from agentic_compression.runtimes import Runtime

__all__ = ["BatchLimit", "batch_limit", "out_of_memory"]

Result = TypeVar("Result")
Report = Callable[[int], None]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, CUDA's or that of torch's CPU allocator.

    ``torch.OutOfMemoryError`` is recognised by its name, so that torch need not be imported.
    """
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return isinstance(error, MemoryError) or named or "can't allocate memory" in str(error)


class BatchLimit:
    """The largest batch that is tried. Work begins with its longest rows, so that what does not fit fails at once.

    Example::

        limit = BatchLimit()
        limit.run(64, lambda rows, report: runtime.score(pairs, rows, report))
    """

    def __init__(self) -> None:
        self.rows: int | None = None
        """At most so many rows; None until memory has run out."""

    def run(self, asked: int, work: Callable[[int, Report], Result], report: Report = lambda _: None) -> Result:
        """Do the work with ``asked`` rows a batch, or with half as many as long as memory runs out.

        Args:
            asked: rows at once, at most.
            work: is given the rows and whom to tell how many items were done; starts from the beginning every time.
            report: told of every item once, however often the work began anew.

        Raises:
            MemoryError: when one row does not fit either (``torch.OutOfMemoryError`` on a GPU, as it was raised).
        """
        told = 0
        while True:
            rows = asked if self.rows is None else min(asked, self.rows)
            done = 0

            def tell(count: int) -> None:
                nonlocal told, done
                done += count
                if done > told:
                    report(done - told)
                    told = done

            try:
                return work(rows, tell)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or rows == 1:
                    raise
            self.rows = rows // 2  # outside the handler: its traceback holds the batch's tensors
            _free_memory()


_LIMITS: dict[str, BatchLimit] = {}


def batch_limit(runtime: Runtime) -> BatchLimit:
    """What has fitted in this process on the runtime's device."""
    return _LIMITS.setdefault(runtime.device, BatchLimit())


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
