"""Continuous batching: one thread steps all running requests together; requests join and leave between steps.

Iteration-level scheduling as in Yu et al. 2022 (Orca, OSDI), with long prompts read in portions so that they do not
hold up the answers that are already being written (Agrawal et al. 2023, arXiv 2308.16369).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from agentic_compression.errors import AcfError
from agentic_compression.runtimes.interface import GenerationOptions
from agentic_compression.runtimes.sampling import TextStream, pick_token
from agentic_compression.serving.grammar import Grammar, GrammarError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Emit",
    "Job",
    "JobQueue",
    "JobScheduler",
    "Portion",
    "Scheduler",
    "SlotModel",
    "Task",
    "failure_event",
    "log_probabilities",
    "text_of",
]

_PROMPT_TOKENS_A_STEP = 512
_MASK_WAIT_S = 0.02


@dataclass(frozen=True)
class Portion:
    """Tokens to run in one slot: ids, the position of the first, and whether the logits after the last are wanted."""

    slot: int
    tokens: Sequence[int]
    start: int
    wanted: bool


class SlotModel(Protocol):
    """A model with room for several sequences. Used from one thread."""

    slots: int
    cells: int
    """Tokens for which memory is taken, at most."""
    batched: bool
    """Whether the slots share a forward pass."""

    def cost(self, tokens: Sequence[int]) -> int:
        """Tokens for which memory is taken when sequences of these lengths are held together."""
        ...

    def run(self, portions: Sequence[Portion]) -> NDArray[np.float32]:
        """Run every portion on top of its slot; logits of the wanted ones in their order, ``(wanted, vocabulary)``."""
        ...

    def free(self, slot: int) -> None:
        """Forget a slot's sequence."""
        ...


@dataclass
class Job:
    """A request on its way through the scheduler; ``ids`` is the prompt.

    Attributes:
        schema: what its answer must keep to, as JSON.
        grammar: the same, compiled.
        held: logits that wait for the grammar's mask; the job is left out of steps meanwhile.
    """

    key: int
    ids: Sequence[int]
    options: GenerationOptions
    text: TextStream
    ends: Collection[int]
    top_logprobs: int | None = None
    slot: int = -1
    done: int = 0
    answered: int = 0
    last: int = -1
    cancelled: bool = False
    generator: Any = field(default=None)
    schema: str | None = None
    grammar: Grammar | None = None
    held: NDArray[np.float32] | None = None

    @property
    def cells(self) -> int:
        """Tokens that the request may come to hold."""
        return len(self.ids) + self.options.new_tokens


Task = Generator[None, None, None]
"""Work in pieces, each about as long as a step. It tells its result itself and raises nothing."""
_OVER = object()

Emit = Callable[[list[dict[str, Any]], int, int], None]
"""Told after every step: the events of that step, how many requests run, how many wait."""


class JobScheduler(Protocol):
    """Runs jobs and tells what comes of them. Its methods may be called from any thread, ``run`` from one."""

    def has_room(self) -> bool:
        """Whether another job may be submitted."""
        ...

    def submit(self, job: Job) -> None:
        """Queue a job."""
        ...

    def cancel(self, key: int) -> None:
        """Drop a job or a task; unknown ones are ignored."""
        ...

    def add(self, key: int, task: Task) -> None:
        """Do other work between two steps, piece by piece."""
        ...

    def close(self) -> None:
        """End ``run`` after the step that is under way."""
        ...

    def run(self) -> None:
        """Work until closed."""
        ...


class JobQueue(ABC):
    """What schedulers have in common: jobs and tasks come from any thread, one thread steps until closed."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._running: Collection[Any] = ()
        self._tasks: deque[tuple[int, Task]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, job: Job) -> None:
        """Queue a job. From any thread."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def add(self, key: int, task: Task) -> None:
        """Do other work in the stepping thread: one piece of it after every step. From any thread."""
        with self._changed:
            self._tasks.append((key, task))
            self._changed.notify()

    def close(self) -> None:
        """End ``run`` after the step that is under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        """Step until closed; sleeps while there is nothing to do."""
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._running or self._tasks):
                    self._changed.wait()
                if self._closed:
                    return
            self.step()

    @abstractmethod
    def step(self) -> None:
        """One step of all that runs."""


class Scheduler(JobQueue):
    """Steps jobs through a model until it is closed.

    Args:
        model: with slots.
        tokenizer: for the text of tokens whose log-probabilities are asked for.
        emit: gets ``{"id", "text", "finish", "logprobs"}`` for every new token, ``{"id", "error", "message"}`` for
            every job that failed. Called in the thread that steps.
        queue: jobs that may wait.
    """

    def __init__(self, model: SlotModel, tokenizer: Any, emit: Emit, queue: int = 256) -> None:
        super().__init__()
        self._model, self._tokenizer, self._emit, self._queue = model, tokenizer, emit, queue
        self._running: list[Job] = []
        self._free = list(range(model.slots))[::-1]
        self._dropped: set[int] = set()

    @property
    def cells(self) -> int:
        """Tokens that one request may need at most."""
        return self._model.cells

    def has_room(self) -> bool:
        """Whether another job may be submitted: free slots count beside the queue. From any thread."""
        with self._changed:
            return len(self._waiting) + len(self._tasks) < self._queue + len(self._free)

    def cancel(self, key: int) -> None:
        """Drop a job or a task before the next step; unknown ones are ignored. From any thread."""
        with self._changed:
            for job in (*self._waiting, *self._running):
                if job.key == key:
                    job.cancelled = True
            self._dropped.update(task for task, _ in self._tasks if task == key)
            self._changed.notify()

    def step(self) -> None:
        """Admit what fits, run one portion of every running job, and tell what came of it."""
        self._admit()
        events: list[dict[str, Any]] = []
        jobs, portions = self._portions()
        if jobs:
            try:
                logits = self._model.run(portions)
            except Exception as error:  # whatever a model raises fails the requests of this step, not the engine
                events += [failure_event(job, error) for job in jobs]
                for job in jobs:
                    self._leave(job)
            else:
                events += self._advance(jobs, portions, logits)
        events += self._resume(wait=not jobs)
        if events or jobs:
            self._emit(events, len(self._running), len(self._waiting))
        self._work()

    def _work(self) -> None:
        """One piece of the oldest task."""
        with self._changed:
            gone = [task for key, task in self._tasks if key in self._dropped]
            self._tasks = deque(item for item in self._tasks if item[0] not in self._dropped)
            self._dropped.clear()
            current = self._tasks[0] if self._tasks else None
        for task in gone:
            task.close()
        if current is not None and next(current[1], _OVER) is _OVER:
            with self._changed:
                self._tasks.remove(current)

    def _admit(self) -> None:
        with self._changed:
            dropped = [job for job in self._running if job.cancelled]
            waited = len(self._waiting)
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            changed = bool(dropped) or len(self._waiting) < waited
        for job in dropped:
            self._leave(job)
        with self._changed:
            while self._waiting and self._free and self._fits(self._waiting[0]):
                job = self._waiting.popleft()
                job.slot = self._free.pop()
                self._running.append(job)
        if changed and not self._running:
            self._emit([], 0, len(self._waiting))

    def _fits(self, job: Job) -> bool:
        return self._model.cost([item.cells for item in (*self._running, job)]) <= self._model.cells

    def _portions(self) -> tuple[list[Job], list[Portion]]:
        """A token of every job that answers, and so much of the prompts, oldest first, as one step may read."""
        jobs, portions, room = [], [], _PROMPT_TOKENS_A_STEP
        for job in self._running:
            if job.answered and job.held is None:
                jobs.append(job)
                portions.append(Portion(job.slot, (job.last,), job.done, True))
        for job in self._running:
            if not job.answered and job.held is None and room > 0:
                part = job.ids[job.done : job.done + room]
                room -= len(part)
                jobs.append(job)
                portions.append(Portion(job.slot, part, job.done, job.done + len(part) == len(job.ids)))
        return jobs, portions

    def _advance(self, jobs: list[Job], portions: list[Portion], logits: NDArray[np.float32]) -> list[dict[str, Any]]:
        events, row = [], 0
        for job, portion in zip(jobs, portions, strict=True):
            job.done += len(portion.tokens)
            if not portion.wanted:
                continue
            if job.grammar is None or job.grammar.ready:
                events.append(self._answer(job, logits[row]))
            else:
                job.held = logits[row].copy()
            row += 1
        return events

    def _resume(self, wait: bool) -> list[dict[str, Any]]:
        """Answer the held jobs whose masks are there; nothing else waits for them, unless nothing else is to do."""
        held = [job for job in self._running if job.held is not None and job.grammar is not None]
        if wait and held and held[0].grammar is not None:
            held[0].grammar.wait(_MASK_WAIT_S)
        events = []
        for job in held:
            if job.grammar is not None and job.held is not None and job.grammar.ready:
                logits, job.held = job.held, None
                events.append(self._answer(job, logits))
        return events

    def _answer(self, job: Job, logits: NDArray[np.float32]) -> dict[str, Any]:
        try:
            event = self._pick(job, logits)
        except AcfError as error:
            event = failure_event(job, error)
        if "error" in event or event["finish"] is not None:
            self._leave(job)
        return event

    def _pick(self, job: Job, logits: NDArray[np.float32]) -> dict[str, Any]:
        """The job's next token: the same order of questions as ``sampling.stream_pieces`` asks."""
        if job.generator is None:
            import numpy as np

            job.generator = np.random.default_rng(job.options.seed)
        allowed = logits if job.grammar is None else job.grammar.mask(logits)
        token = pick_token(allowed, job.options, job.generator)
        job.last = token
        job.answered += 1
        event: dict[str, Any] = {"id": job.key, "finish": None}
        if token in job.ends:
            event |= {"text": job.text.finish(), "finish": "stop"}
            return event
        shown, stopped = job.text.push(token)
        if stopped:
            event["finish"] = "stop"
        elif job.grammar is not None and job.grammar.accept(token):
            shown += job.text.finish()
            event["finish"] = "stop"
        elif job.answered == job.options.new_tokens:
            shown += job.text.finish()
            event["finish"] = "length"
        event["text"] = shown
        if job.top_logprobs is not None:
            event["logprobs"] = log_probabilities(logits, token, job.top_logprobs, self._tokenizer)
        return event

    def _leave(self, job: Job) -> None:
        self._model.free(job.slot)
        self._running.remove(job)
        self._free.append(job.slot)


def log_probabilities(logits: NDArray[np.float32], token: int, top: int, tokenizer: Any) -> list[Any]:
    """``[text, logprob, [[text, logprob], …]]`` of a token and of the ``top`` most likely ones: nats, temperature 1."""
    import numpy as np

    shifted = logits.astype(np.float64) - float(logits.max())
    normal = float(np.log(np.exp(shifted).sum()))
    best = np.argsort(-shifted, kind="stable")[:top]
    named = [[text_of(tokenizer, int(item)), float(shifted[item] - normal)] for item in best]
    return [text_of(tokenizer, token), float(shifted[token] - normal), named]


def text_of(tokenizer: Any, token: int) -> str:
    """A token's own text."""
    return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))


def failure_event(job: Job, error: BaseException) -> dict[str, Any]:
    """What is told of a job that an error ended."""
    if isinstance(error, GrammarError):
        return {
            "id": job.key,
            "error": "prompt",
            "message": str(error)[:500],
            "code": "invalid_json_schema",
            "param": "response_format",
        }
    kind = "memory" if isinstance(error, MemoryError) or "allocate memory" in str(error) else "engine"
    return {"id": job.key, "error": kind, "message": f"{type(error).__name__}: {error}"[:500]}
