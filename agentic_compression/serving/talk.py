"""Conversations with loaded models, one or two side by side, with what every answer took: time, memory, energy.

The engines are those of the server, in processes of their own; there is no HTTP between. Used from one event loop.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from agentic_compression.errors import AcfError, UnavailableError
from agentic_compression.evaluation.energy import CpuTimeCounter, EnergyCounter, EnergyMeter
from agentic_compression.records import Record
from agentic_compression.serving.device_memory import DeviceMemory, open_memory
from agentic_compression.serving.engine import Delta, EngineOptions, Generation, Prepared
from agentic_compression.serving.launcher import Launcher
from agentic_compression.serving.process import ProcessEngine, start_engine
from agentic_compression.serving.sources import Target

__all__ = ["Reply", "Side", "TalkOptions", "counter_of", "needed_bytes", "open_sides"]

_PROCESS_BYTES = 64_000_000
_WEIGHTS_FACTOR = 1.25
_COARSE_S = 0.05
_SCHEDULER_CLOCK = 2


class TalkOptions(Record):
    """How to answer."""

    new_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0, le=2)
    system: str | None = None


class Reply(Record):
    """One answer and what it took."""

    model: str
    version: str = Field(description="folder or registered version that answered")
    text: str
    finish: Literal["stop", "length", "interrupted"]
    prompt_tokens: int
    truncated: bool = Field(description="whether the oldest turns were left out")
    tokens: int
    first_token_s: float | None = Field(description="from the question to the first token")
    seconds: float = Field(description="from the question to the end")
    tokens_per_second: float | None = Field(description="after the first token; None below two tokens")
    joules: float | None = Field(description="of the whole answer, reading the prompt included; None when unreadable")
    joules_per_token: float | None
    energy_source: Literal["measured", "estimated"]
    energy_method: str
    memory_bytes: int | None = Field(description="of the engine's process after the answer")


class Side:
    """One model with the conversation held with it.

    Args:
        name: as the user called it.
        target: what was loaded.
        engine: answers.
        memory: tells what the engine takes.
        counter: of energy.
    """

    def __init__(
        self, name: str, target: Target, engine: ProcessEngine, memory: DeviceMemory, counter: EnergyCounter
    ) -> None:
        self.name, self.target, self.engine = name, target, engine
        self._memory, self.counter = memory, counter
        self.history: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget the conversation."""
        self.history.clear()

    async def warm_up(self) -> None:
        """Answer a token, so that the first question is not charged for what happens once."""
        async with aclosing(self.engine.generate(Generation(prompt="a", new_tokens=1))) as pieces:
            async for _ in pieces:
                pass

    async def answer(self, question: str, options: TalkOptions, seed: int, show: Callable[[str], None]) -> Reply:
        """Answer in the light of what was said before; ``show`` gets the text piece by piece.

        Cancelling it stops the answer: what was said until then is returned and remembered.

        Raises:
            PromptError: when the question cannot be asked; the conversation is as before.
            EngineDiedError: when the engine's process ended.
        """
        system = [{"role": "system", "content": options.system}] if options.system else []
        turns = [*self.history, {"role": "user", "content": question}]
        asked = Generation(
            messages=[*system, *turns],
            new_tokens=options.new_tokens,
            temperature=options.temperature,
            seed=seed,
        )
        run = _Run(self.engine, asked, show)
        with EnergyMeter(self.counter, aligned=self.counter.resolution_s >= _COARSE_S) as meter:
            await run.finish()
        self.history = [*turns, {"role": "assistant", "content": run.text}] if run.text else self.history
        joules = meter.reading.joules
        return Reply(
            model=self.name,
            version=self.target.label,
            text=run.text,
            finish=run.ending,
            prompt_tokens=run.prompt_tokens,
            truncated=run.truncated,
            tokens=run.tokens,
            first_token_s=run.first_s,
            seconds=run.seconds,
            tokens_per_second=run.rate,
            joules=joules,
            joules_per_token=joules / run.tokens if run.tokens else None,
            energy_source=meter.reading.source,
            energy_method=meter.reading.method,
            memory_bytes=self._memory.used_by(self.engine.info.pid),
        )


class _Run:
    """One answer while it is written."""

    def __init__(self, engine: ProcessEngine, asked: Generation, show: Callable[[str], None]) -> None:
        self._engine, self._asked, self._show = engine, asked, show
        self.text, self.tokens, self.prompt_tokens, self.truncated = "", 0, 0, False
        self.ending: Literal["stop", "length", "interrupted"] = "interrupted"
        self.first_s: float | None = None
        self.seconds = 0.0
        self._first_tokens = 0

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first piece."""
        later = self.tokens - self._first_tokens
        if self.first_s is None or later < 1 or self.seconds <= self.first_s:
            return None
        return later / (self.seconds - self.first_s)

    async def finish(self) -> None:
        """To the end, or until it is cancelled."""
        began = time.perf_counter()
        try:
            async with aclosing(self._engine.generate(self._asked)) as pieces:
                async for piece in pieces:
                    self._take(piece, time.perf_counter() - began)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not self.prompt_tokens:
                raise
            task.uncancel()  # the user stopped the answer, not the program
        self.seconds = time.perf_counter() - began

    def _take(self, piece: Prepared | Delta, seconds: float) -> None:
        if isinstance(piece, Prepared):
            self.prompt_tokens, self.truncated = piece.prompt_tokens, piece.truncated
            return
        if self.first_s is None:
            self.first_s, self._first_tokens = seconds, piece.tokens
        self.text += piece.text
        self.tokens += piece.tokens
        self.ending = piece.finish or self.ending
        if piece.text:
            self._show(piece.text)


def counter_of(counter: EnergyCounter, pid: int, cpu_watts_per_core: float) -> EnergyCounter:
    """Where energy is estimated from CPU time, that of the engine alone: drawing the answer is no work of the model."""
    if not isinstance(counter, CpuTimeCounter):
        return counter
    return CpuTimeCounter(cpu_watts_per_core, clock=lambda: _cpu_seconds(pid), reason=counter.reason)


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads; 0 when it ended. Linux has a clock of nanoseconds, named after it."""
    import psutil

    try:
        if sys.platform == "linux":
            return time.clock_gettime(~pid << 3 | _SCHEDULER_CLOCK)
        times = psutil.Process(pid).cpu_times()
    except (OSError, psutil.Error):
        return 0.0
    return float(times.user + times.system)


def needed_bytes(target: Target) -> int:
    """Memory of an engine, estimated from its files.

    Raises:
        ModelError: when the folder holds no weights.
    """
    return int(_PROCESS_BYTES + _WEIGHTS_FACTOR * target.weights_bytes())


@asynccontextmanager
async def open_sides(
    targets: Mapping[str, Target],
    options: EngineOptions,
    open_counter: Callable[[int], EnergyCounter],
    logs: Path,
    timeout_s: float,
) -> AsyncIterator[list[Side]]:
    """Load the models, each in a process of its own, once all of them are known to fit.

    Args:
        targets: by the name that the user gave.
        options: of every engine.
        open_counter: of the energy of an engine, by its process.
        logs: folder for what the processes print.
        timeout_s: for loading one.

    Raises:
        UnavailableError: when they do not fit the memory together, with the numbers.
        AcfError: when one cannot be loaded.
    """
    memory = open_memory(options.device)
    sizes = {name: needed_bytes(target) for name, target in targets.items()}
    if sum(sizes.values()) > (free := memory.free()):
        listed = ", ".join(f"{name} about {size / 1e6:.0f} MB" for name, size in sizes.items())
        raise UnavailableError(f"{listed} must fit the {free / 1e6:.0f} MB that are free; free some, or talk to one")
    async with AsyncExitStack() as stack:
        launcher = Launcher(logs / "chat.log")
        stack.callback(launcher.close)
        sides = []
        for name, target in targets.items():
            engine = await start_engine(launcher, target.folder, options, logs / "engines.log", timeout_s)
            stack.push_async_callback(engine.close)
            side = Side(name, target, engine, memory, open_counter(engine.info.pid))
            try:
                await side.warm_up()
            except AcfError as error:
                raise UnavailableError(f"{name} must answer, got: {error}; see {logs / 'engines.log'}") from error
            sides.append(side)
        yield sides
