"""Memory measured late: a process forked early waits until the measurement is wanted.

Memory has to be measured from a process that has not computed yet (see ``memory``), and the rungs want it only for a
candidate that cheaper evidence did not reject. So a copy of this process is forked before anything is computed. It
shares all its pages and costs nothing while it waits; asked, it runs the repetitions; left alone, it ends.
"""

from __future__ import annotations

import gc
import os
import traceback
from types import TracebackType
from typing import IO, Any, NoReturn

from agentic_compression.errors import AcfError, CompressionError
from agentic_compression.evaluation.memory import MemoryProbe, may_fork, measure_memory
from agentic_compression.progress import Progress, no_progress
from agentic_compression.records import MemoryMeasurement, Record

__all__ = ["MemoryInWaiting"]

_GO = b"go"


class _Answer(Record):
    measured: MemoryMeasurement | None = None
    error: str = ""
    kind: str = ""


class MemoryInWaiting:
    """A ``with`` block around the computing; ``measure`` may be called once, anywhere inside::

    with MemoryInWaiting(probe, 3) as memory:
        …                      # load and run the model
        memory.measure()
    """

    def __init__(self, probe: MemoryProbe, repeats: int) -> None:
        """Prepare ``repeats`` repetitions of ``probe``; nothing is forked yet."""
        self._probe, self._repeats = probe, repeats
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

    def measure(self, progress: Progress = no_progress) -> MemoryMeasurement:
        """Run the repetitions now.

        Raises:
            MemoryError: when a repetition ran out of memory.
            CompressionError: when a repetition failed; with its reason.
        """
        if self._ask is None or self._answer is None:
            return measure_memory(self._probe, self._repeats, progress)
        progress("memory", 0, self._repeats)
        self._ask.write(_GO)
        self._ask.close()
        text = self._answer.read()
        progress("memory", self._repeats, self._repeats)
        if not text:
            raise CompressionError("the process that measures memory ended without an answer; see the log of the child")
        answer = _Answer.model_validate_json(text)
        if answer.measured is not None:
            return answer.measured
        if answer.kind == "MemoryError":
            raise MemoryError(answer.error)
        raise CompressionError(answer.error)

    def _wait(self, asked: int, answered: int) -> NoReturn:
        """The forked copy: wait, measure, answer, leave without running anybody's exit handlers."""
        code = 1
        try:
            if os.read(asked, len(_GO)) == _GO:
                _send(answered, self._measured())
            code = 0
        finally:
            os._exit(code)

    def _measured(self) -> _Answer:
        try:
            return _Answer(measured=measure_memory(self._probe, self._repeats))
        except (AcfError, MemoryError) as error:
            return _Answer(error=str(error), kind=type(error).__name__)
        except Exception as error:
            traceback.print_exc()
            return _Answer(error=f"measuring memory failed: {type(error).__name__}: {error}")


def _send(descriptor: int, answer: Any) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(answer.model_dump_json().encode())
