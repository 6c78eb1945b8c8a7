"""The scheduler over a model that can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.runtimes import GenerationOptions
from agentic_compression.runtimes.sampling import TextStream
from agentic_compression.serving.batching import Job, Portion, Scheduler, log_probabilities

WORDS = 32
END = 31


class Counting:
    """The next token is the sum of the sequence so far, modulo 31; checks that it is run as slots may be."""

    batched = True

    def __init__(self, slots: int, cells: int) -> None:
        self.slots, self.cells = slots, cells
        self.held: dict[int, list[int]] = {}
        self.most = 0
        self.broken: set[int] = set()

    def cost(self, tokens: Sequence[int]) -> int:
        return sum(tokens)

    def run(self, portions: Sequence[Portion]) -> Any:
        rows = []
        assert len({portion.slot for portion in portions}) == len(portions)
        for portion in portions:
            if set(portion.tokens) & self.broken:
                raise RuntimeError("a token that breaks the model")
            held = self.held.setdefault(portion.slot, [])
            assert len(held) == portion.start
            held.extend(portion.tokens)
            if portion.wanted:
                rows.append(np.eye(WORDS, dtype=np.float32)[sum(held) % END])
        self.most = max(self.most, len(self.held))
        assert len(self.held) <= self.slots
        assert sum(map(len, self.held.values())) <= self.cells
        return np.stack(rows) if rows else np.empty((0, 0), dtype=np.float32)

    def free(self, slot: int) -> None:
        self.held.pop(slot, None)


class Letters:
    """Token 3 is the letter d."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(ord("a") + token) if token < 26 else "." for token in ids)


def job(key: int, ids: Sequence[int], new_tokens: int, stop: tuple[str, ...] = ()) -> Job:
    return Job(key, ids, GenerationOptions(new_tokens, stop), TextStream(Letters(), stop), {END})


def expected(ids: Sequence[int], count: int) -> str:
    held = list(ids)
    for _ in range(count):
        held.append(sum(held) % END)
    return Letters().decode(held[len(ids) :])


class Told:
    """What a scheduler told."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.finished: dict[int, str] = {}
        self.running = 0

    def __call__(self, events: list[dict[str, Any]], running: int, waiting: int) -> None:
        self.running = running
        for event in events:
            self.texts[event["id"]] = self.texts.get(event["id"], "") + event.get("text", "")
            assert event["id"] not in self.finished, "told after its end"
            if event.get("finish") or "error" in event:
                self.finished[event["id"]] = event.get("finish") or event["error"]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 30), min_size=1, max_size=700), st.integers(1, 12), st.integers(0, 6)),
        min_size=1,
        max_size=12,
    ),
    st.sets(st.integers(0, 11)),
)
def test_every_job_gets_its_own_answer_whenever_it_joins(plans: list[Any], cancelled: set[int]) -> None:
    model, told = Counting(4, 1600), Told()
    scheduler = Scheduler(model, Letters(), told)
    jobs = {key: job(key, ids, new) for key, (ids, new, _) in enumerate(plans)}
    for step in range(400):
        for key, (_, _, begins) in enumerate(plans):
            if begins == step:
                scheduler.submit(jobs[key])
            if key in cancelled and begins + 2 == step:
                scheduler.cancel(key)
        scheduler.step()
    for key, (ids, new, _) in enumerate(plans):
        if key in told.finished:
            assert told.finished[key] == "length"
            assert told.texts[key] == expected(ids, new)
        else:
            assert key in cancelled
            assert expected(ids, new).startswith(told.texts.get(key, ""))
    assert model.held == {}
    assert told.running == 0


def test_jobs_decode_together_and_wait_for_room() -> None:
    model, told = Counting(2, 100), Told()
    scheduler = Scheduler(model, Letters(), told)
    for key in range(3):
        scheduler.submit(job(key, [key + 1], 5))
    scheduler.step()
    assert (model.most, told.running) == (2, 2)
    cramped = Counting(4, 20)
    scheduler = Scheduler(cramped, Letters(), told)
    for key in range(10, 13):
        scheduler.submit(job(key, [1] * 5, 5))
    scheduler.step()
    assert cramped.most == 2, "two requests of ten tokens fill a cache of twenty"


class Rectangle(Counting):
    """Takes memory for rows times width; checks that the scheduler keeps to it."""

    def cost(self, tokens: Sequence[int]) -> int:
        return len(tokens) * max(tokens, default=0)

    def run(self, portions: Sequence[Portion]) -> Any:
        rows = super().run(portions)
        assert self.cost([len(held) for held in self.held.values()]) <= self.cells
        return rows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 80), st.integers(1, 12)), min_size=1, max_size=12))
def test_a_model_whose_cache_is_a_rectangle_never_holds_more_than_it_may(plans: list[tuple[int, int]]) -> None:
    told = Told()
    scheduler = Scheduler(Rectangle(6, 100), Letters(), told)
    for key, (length, new) in enumerate(plans):
        scheduler.submit(job(key, [1] * length, new))
    for _ in range(200):
        scheduler.step()
    assert told.texts == {key: expected([1] * length, new) for key, (length, new) in enumerate(plans)}


def test_a_long_prompt_does_not_hold_up_an_answer() -> None:
    model, told = Counting(2, 5000), Told()
    scheduler = Scheduler(model, Letters(), told)
    scheduler.submit(job(0, [1], 8))
    scheduler.step()
    scheduler.submit(job(1, [1] * 2000, 2))
    for _ in range(3):
        scheduler.step()
    assert len(told.texts[0]) == 4
    assert 1 not in told.texts


def test_a_step_that_fails_ends_its_jobs_and_no_others() -> None:
    model, told = Counting(2, 100), Told()
    model.broken = {29}
    scheduler = Scheduler(model, Letters(), told)
    scheduler.submit(job(0, [29], 4))
    scheduler.step()
    scheduler.submit(job(1, [1], 4))
    for _ in range(5):
        scheduler.step()
    assert told.finished == {0: "engine", 1: "length"}
    assert model.held == {}


def test_stop_strings_and_the_end_token() -> None:
    told = Told()
    scheduler = Scheduler(Counting(2, 100), Letters(), told)
    scheduler.submit(job(0, [1], 9, ("ce",)))
    for _ in range(9):
        scheduler.step()
    assert expected([1], 9).startswith("bce")
    assert (told.texts[0], told.finished[0]) == ("b", "stop")


def test_a_full_queue_refuses() -> None:
    scheduler = Scheduler(Counting(1, 100), Letters(), Told(), queue=1)
    for key in range(2):
        assert scheduler.has_room()
        scheduler.submit(job(key, [1], 9))
    assert not scheduler.has_room(), "one may decode and one may wait"
    scheduler.step()
    assert not scheduler.has_room()
    scheduler.cancel(1)
    scheduler.step()
    assert scheduler.has_room()


def test_log_probabilities_are_a_log_softmax() -> None:
    logits = np.array([0.5, 3.0, -1.0, 3.0], dtype=np.float32)
    text, value, top = log_probabilities(logits, 0, 2, Letters())
    normal = np.log(np.exp(logits.astype(np.float64)).sum())
    assert text == "a"
    assert value == pytest.approx(0.5 - normal)
    assert [item[0] for item in top] == ["b", "d"]
    assert top[0][1] == pytest.approx(3.0 - normal)


def pieces(count: int, log: list[str], name: str) -> Any:
    try:
        for number in range(count):
            log.append(f"{name}{number}")
            yield
    finally:
        log.append(f"{name} over")


def test_other_work_is_done_a_piece_a_step_and_can_be_dropped() -> None:
    told, log = Told(), []
    scheduler = Scheduler(Counting(2, 100), Letters(), told)
    scheduler.submit(job(0, [1], 5))
    scheduler.add(1, pieces(3, log, "a"))
    scheduler.add(2, pieces(9, log, "b"))
    scheduler.step()
    assert (log, len(told.texts[0])) == (["a0"], 1)
    for _ in range(4):
        scheduler.step()
    assert log == ["a0", "a1", "a2", "a over", "b0"]
    assert len(told.texts[0]) == 5
    scheduler.cancel(2)
    scheduler.step()
    assert log[-2:] == ["b0", "b over"]
    scheduler.step()
    assert log[-1] == "b over"


class Slow:
    """A grammar that allows one letter, and takes as long as the test says."""

    def __init__(self, only: int) -> None:
        self.only, self.ready, self.waited = only, False, 0

    def wait(self, seconds: float) -> None:
        self.waited += 1

    def mask(self, logits: Any) -> Any:
        assert self.ready
        return np.where(np.arange(len(logits)) == self.only, logits, -np.inf)

    def accept(self, token: int) -> bool:
        assert token == self.only
        return False


def test_a_slow_grammar_holds_up_no_other_request() -> None:
    told = Told()
    scheduler = Scheduler(Counting(2, 100), Letters(), told)
    bound, grammar = job(1, [1], 3), Slow(7)
    bound.grammar = grammar  # type: ignore[assignment]
    scheduler.submit(job(0, [1], 6))
    scheduler.submit(bound)
    for _ in range(4):
        scheduler.step()
    assert len(told.texts[0]) == 4
    assert 1 not in told.texts
    assert grammar.waited == 0
    grammar.ready = True
    for _ in range(5):
        scheduler.step()
    assert told.texts == {0: expected([1], 6), 1: "hhh"}
    lonely, grammar = job(2, [1], 3), Slow(7)
    lonely.grammar = grammar  # type: ignore[assignment]
    scheduler.submit(lonely)
    for _ in range(3):
        scheduler.step()
    assert grammar.waited > 0, "with nothing else to do, it sleeps until the mask is there"
    scheduler.cancel(2)
    scheduler.step()
    assert told.running == 0
