"""Memory measured late: a process forked early waits until the measurement is wanted.

Memory has to be measured from a process that has not computed yet (see ``memory``), and the rungs want it only for a
candidate that cheaper evidence did not reject. So a copy of this process is forked before anything is computed. It
shares all its pages and costs nothing while it waits; every time it is asked, it runs one repetition; left alone, it
ends.
"""

from __future__ import annotations

import gc
import os
import traceback
from contextlib import suppress
from types import TracebackType
from typing import IO, NoReturn

from agentic_compression.errors import AcfError, CompressionError
from agentic_compression.evaluation.memory import MemoryProbe, Observation, may_fork, memory_of, observe_memory
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import MemoryMeasurement, Record

__all__ = ["MemoryInWaiting"]

_GO = b"go"


class _Answer(Record):
    observation: Observation | None = None
    error: str = ""
    kind: str = ""


class MemoryInWaiting:
    """A ``with`` block around the computing; both methods may be called anywhere inside::

    with MemoryInWaiting(probe, 3) as memory:
        …                      # load and run the model
        memory.glance()        # one repetition
        memory.measure()       # two more, and all three put together
    """

    def __init__(self, probe: MemoryProbe, repeats: int) -> None:
        """Prepare ``repeats`` repetitions of ``probe``; nothing is forked yet."""
        self._probe, self._repeats = probe, repeats
        self._observations: list[Observation] = []
        self._child = 0
        self._ask: IO[bytes] | None = None
        self._answer: IO[bytes] | None = None

    def __enter__(self) -> MemoryInWaiting:
        if not may_fork():
            return self  # threads run already: the measurement takes a new interpreter when it is wanted
        gc.freeze()
        asked, ask = os.pipe()
        answer, answered = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(ask)
            os.close(answer)
            self._wait(asked, answered)
        os.close(asked)
        os.close(answered)
        self._ask, self._answer = os.fdopen(ask, "wb"), os.fdopen(answer, "rb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ask is not None and self._answer is not None:
            self._ask.close()  # what still waits reads the end and leaves
            self._answer.close()
            os.waitpid(self._child, 0)
            self._ask = self._answer = None

    def glance(self) -> int:
        """Bytes of growth in the first repetition; it counts among those of ``measure``.

        Raises:
            MemoryError: when the repetition ran out of memory.
            CompressionError: when it failed; with its reason.
        """
        if not self._observations:
            self._observations += self._observed(1)
        return self._observations[0].growth

    def measure(self, progress: Progress = no_progress) -> MemoryMeasurement:
        """Run the repetitions that are left, and put all together.

        Raises:
            MemoryError: when a repetition ran out of memory.
            CompressionError: when a repetition failed; with its reason.
        """
        done = len(self._observations)
        progress("memory", done, self._repeats)
        if self._ask is None:
            self._observations += self._observed(self._repeats - done)
        while len(self._observations) < self._repeats:
            self._observations += self._observed(1)
            progress("memory", len(self._observations), self._repeats)
        return memory_of(self._observations)

    def _observed(self, count: int) -> list[Observation]:
        """So many repetitions: by the copy that waits, or by new processes where none could be forked."""
        if self._ask is None or self._answer is None:
            return observe_memory(self._probe, count) if count else []
        found = []
        for _ in range(count):
            with suppress(BrokenPipeError):  # it has ended; the empty answer tells
                self._ask.write(_GO)
                self._ask.flush()
            found.append(_read(self._answer.readline()))
        return found

    def _wait(self, asked: int, answered: int) -> NoReturn:
        """The forked copy: wait, observe, answer, until nobody asks; leave without running anybody's exit handlers."""
        code = 1
        try:
            with os.fdopen(answered, "wb") as pipe:
                while os.read(asked, len(_GO)) == _GO:
                    pipe.write(self._observe().model_dump_json().encode() + b"\n")
                    pipe.flush()
            code = 0
        finally:
            os._exit(code)

    def _observe(self) -> _Answer:
        try:
            return _Answer(observation=observe_memory(self._probe, 1)[0])
        except (AcfError, MemoryError) as error:
            return _Answer(error=str(error), kind=type(error).__name__)
        except Exception as error:
            traceback.print_exc()
            return _Answer(error=f"measuring memory failed: {type(error).__name__}: {error}")


def _read(line: bytes) -> Observation:
    if not line:
        raise CompressionError("the process that measures memory ended without an answer; see the log of the child")
    answer = _Answer.model_validate_json(line)
    if answer.observation is not None:
        return answer.observation
    if answer.kind == "MemoryError":
        raise MemoryError(answer.error)
    raise CompressionError(answer.error)
