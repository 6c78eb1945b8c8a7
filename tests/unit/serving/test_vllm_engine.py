"""vLLM's scheduler beside the one over slots, on the same model: by a double of vLLM's engine, for there is no GPU."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from typer.testing import CliRunner

from agentic_compression.cli.main import app
from agentic_compression.demo import model_path
from agentic_compression.errors import CompressionError, ConfigurationError, ModelError, UnavailableError
from agentic_compression.runtimes import GenerationOptions
from agentic_compression.runtimes.sampling import TextStream
from agentic_compression.serving.batching import Job, Portion, Scheduler
from agentic_compression.serving.engine import (
    Delta,
    EngineDiedError,
    EngineOptions,
    Generation,
    LoadMemoryError,
    Prepared,
    PromptError,
)
from agentic_compression.serving.loading import load_engine
from agentic_compression.serving.process import ProcessEngine, start_engine
from agentic_compression.serving.schema_trial import _Bytes, compile_schema
from agentic_compression.serving.vllm_engine import VllmScheduler, sampling_of
from tests.unit.serving import vllm_double as vllm

PIECES = [piece.encode() for piece in "abcdefgh .,"] + [bytes([byte]) for byte in "é語🙂".encode()]
WORDS, END = len(PIECES) + 1, len(PIECES)
LOGITS = vllm.random_logits(WORDS)


class Bytes:
    """Tokens that may be parts of a character."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return b"".join(PIECES[token] for token in ids if token != END).decode("utf-8", "replace")


class Slots:
    """The same model in slots."""

    slots, cells, batched = 4, 10_000, True

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}

    def cost(self, tokens: Sequence[int]) -> int:
        return sum(tokens)

    def run(self, portions: Sequence[Portion]) -> Any:
        for portion in portions:
            self.held.setdefault(portion.slot, []).extend(portion.tokens)
        return np.stack([LOGITS(self.held[portion.slot]) for portion in portions if portion.wanted])

    def free(self, slot: int) -> None:
        self.held.pop(slot, None)


class Told:
    """What a scheduler told, by job."""

    def __init__(self) -> None:
        self.events: dict[int, list[dict[str, Any]]] = {}
        self.running, self.waiting = 0, 0

    def __call__(self, events: list[dict[str, Any]], running: int, waiting: int) -> None:
        self.running, self.waiting = running, waiting
        for event in events:
            told = self.events.setdefault(event["id"], [])
            assert not told or (told[-1].get("finish") is None and "error" not in told[-1]), "told after its end"
            told.append(event)

    def text(self, key: int) -> str:
        return "".join(event.get("text", "") for event in self.events[key])


def job(key: int, ids: Sequence[int], new_tokens: int, stop: tuple[str, ...] = (), **more: Any) -> Job:
    options = GenerationOptions(new_tokens, stop, **{k: more.pop(k) for k in ("temperature", "seed") if k in more})
    return Job(key, ids, options, TextStream(Bytes(), stop), {END}, **more)


def scheduler_of(engine: Any, told: Told, places: int = 4, queue: int = 256) -> VllmScheduler:
    return VllmScheduler(engine, vllm, Bytes(), places, told, queue)


PLANS = st.lists(
    st.tuples(
        st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=20).filter(
            lambda ids: ids not in (vllm.POISON, vllm.EXHAUSTING)
        ),
        st.integers(1, 30),
        st.sampled_from([(), ("a",), ("é",), ("ab", "c"), (". ", "語")]),
        st.sampled_from([None, 0, 3, WORDS]),
        st.integers(0, 4),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(PLANS, st.integers(1, 3), st.sampled_from([3, 64]))
def test_greedy_answers_are_those_of_the_scheduler_over_slots(plans: list[Any], burst: int, chunk: int) -> None:
    engine, told, reference = vllm.LLMEngine(LOGITS, chunk=chunk, burst=burst), Told(), Told()
    scheduler, slots = scheduler_of(engine, told), Scheduler(Slots(), Bytes(), reference)
    for step in range(300):
        for key, (ids, new, stop, top, begins) in enumerate(plans):
            if begins == step:
                scheduler.submit(job(key, ids, new, stop, top_logprobs=top))
                slots.submit(job(key, ids, new, stop, top_logprobs=top))
        scheduler.step()
        slots.step()
    assert told.events.keys() == reference.events.keys() == set(range(len(plans)))
    for key, events in reference.events.items():
        assert told.text(key) == "".join(event["text"] for event in events)
        assert [event["finish"] for event in told.events[key]] == [event["finish"] for event in events]
        for ours, theirs in zip(told.events[key], events, strict=True):
            assert ("logprobs" in ours) == ("logprobs" in theirs)
            if "logprobs" in theirs:
                (name, value, top), (other, expected, others) = ours["logprobs"], theirs["logprobs"]
                assert name == other
                assert value == pytest.approx(expected, abs=1e-5)
                assert [pair[0] for pair in top] == [pair[0] for pair in others]
                assert [pair[1] for pair in top] == pytest.approx([pair[1] for pair in others], abs=1e-5)
    assert not engine.has_unfinished_requests(), "what our stop strings ended must end in vLLM too"
    assert (told.running, told.waiting) == (0, 0)


def test_a_stop_string_aborts_in_vllm_and_an_end_token_does_not() -> None:
    engine, told = vllm.LLMEngine(LOGITS), Told()
    scheduler = scheduler_of(engine, told)
    for key in (0, 1):
        scheduler.submit(job(key, [1, 2, 3], 500, () if key == 0 else (told.text(0)[1:3],)))
        for _ in range(600):
            scheduler.step()
        assert told.events[key][-1]["finish"] == "stop"
    assert len(told.text(0)) > 3
    assert told.text(1) == told.text(0)[:1]
    assert engine.aborted == ["1"]


def test_seeds_temperatures_and_nuclei_reach_vllm() -> None:
    def texts(seed: int, temperature: float) -> list[str]:
        told = Told()
        scheduler = scheduler_of(vllm.LLMEngine(LOGITS), told)
        for key in range(2):
            scheduler.submit(job(key, [3, 4], 20, seed=seed, temperature=temperature))
        for _ in range(40):
            scheduler.step()
        return [told.text(0), told.text(1)]

    first, second = texts(5, 1.5)
    assert first == second
    assert texts(6, 1.5)[0] != first
    assert texts(5, 0)[0] == texts(6, 0)[0]


def test_more_jobs_than_places_wait_and_cancelled_ones_leave() -> None:
    engine, told = vllm.LLMEngine(LOGITS, end=None), Told()
    scheduler = scheduler_of(engine, told, places=2, queue=2)
    for key in range(4):
        assert scheduler.has_room()
        scheduler.submit(Job(key, [5, key], GenerationOptions(40), TextStream(Bytes(), ()), ()))
    assert not scheduler.has_room()
    scheduler.step()
    assert (told.running, told.waiting) == (2, 2)
    scheduler.cancel(0)
    scheduler.cancel(3)
    scheduler.cancel(99)
    scheduler.step()
    assert (told.running, told.waiting) == (2, 0)
    assert engine.aborted == ["0"]
    assert scheduler.has_room()
    for _ in range(60):
        scheduler.step()
    assert told.events[1][-1]["finish"] == told.events[2][-1]["finish"] == "length"
    assert 3 not in told.events
    assert engine.most == 2


def test_a_refused_request_fails_alone() -> None:
    engine, told = vllm.LLMEngine(LOGITS, max_model_len=16), Told()
    scheduler = scheduler_of(engine, told)
    scheduler.submit(job(0, [1] * 16, 4))
    scheduler.submit(job(1, [1, 2], 4))
    for _ in range(20):
        scheduler.step()
    (refused,) = told.events[0]
    assert (refused["error"], refused["code"]) == ("prompt", "invalid_prompt")
    assert "must be shorter" in refused["message"]
    assert told.events[1][-1]["finish"] in ("length", "stop")


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
def test_an_end_that_is_no_answer_is_an_error(reason: str) -> None:
    engine, told = vllm.LLMEngine(LOGITS, end=None), Told()
    scheduler = scheduler_of(engine, told)
    scheduler.submit(job(0, [1, 2], 50))
    scheduler.step()
    engine.ended_with["0"] = reason
    scheduler.step()
    assert told.events[0][-1]["error"] == "engine"
    assert reason in told.events[0][-1]["message"]
    assert told.running == 0


@pytest.mark.parametrize(("prompt", "kind"), [(vllm.POISON, "engine"), (vllm.EXHAUSTING, "memory")])
def test_a_failed_step_fails_its_requests_and_ends_the_engine(prompt: list[int], kind: str) -> None:
    told = Told()
    scheduler = scheduler_of(vllm.LLMEngine(LOGITS, end=None), told, places=2)
    for key, ids in enumerate([[1, 2], prompt, [3, 4]]):
        scheduler.submit(job(key, ids, 50))
    scheduler.run()  # returns, for it cannot go on
    assert [told.events[key][-1]["error"] for key in (0, 1)] == [kind, kind]
    assert 2 not in told.events, "the process ends, and with it what waits"


def test_a_broken_model_is_said_to_be_broken() -> None:
    told = Told()
    engine = vllm.LLMEngine(lambda ids: np.full(WORDS, np.nan, dtype=np.float32))
    scheduler = scheduler_of(engine, told)
    scheduler.submit(job(0, [1], 9, top_logprobs=0))
    scheduler.step()
    assert "got NaN" in told.events[0][-1]["message"]
    assert engine.aborted == ["0"]


def test_other_work_is_done_between_steps_until_cancelled() -> None:
    done: list[int] = []

    def count(name: int) -> Any:
        for _ in range(3):
            done.append(name)
            yield

    scheduler = scheduler_of(vllm.LLMEngine(LOGITS), Told())
    for key in (1, 2, 3):
        scheduler.add(key, count(key))
    scheduler.cancel(2)
    for _ in range(10):
        scheduler.step()
    assert done == [1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"type": "array", "items": {"enum": ["x", 1, None]}, "x-guidance": {"whitespace_pattern": "[ ]*"}},
    ],
)
def test_vllm_keeps_to_the_same_grammar_as_the_other_engines(schema: dict[str, Any]) -> None:
    """Both matchers allow the same bytes all along a random walk, whatever options the client sends in the schema."""
    text = json.dumps(schema)
    params = sampling_of(vllm, job(0, [1], 9, schema=text))
    vocabulary = LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
    grammar = LLMatcher.grammar_from_json_schema(params.structured_outputs.json, defaults={"whitespace_flexible": True})
    theirs, ours = LLMatcher(vocabulary, grammar, log_level=0), compile_schema(text, vocabulary)
    generator = np.random.default_rng(0)
    for _ in range(100):
        mask = ours.compute_bitmask()
        assert theirs.compute_bitmask() == mask
        allowed = [byte for byte in range(256) if int.from_bytes(mask, "little") >> byte & 1]
        if not allowed or ours.is_stopped():
            break
        token = int(generator.choice(allowed))
        ours.consume_token(token)
        theirs.consume_token(token)


class Processes:
    """Starts the double as a process, in the launcher's place."""

    def __init__(self) -> None:
        self.started: dict[int, subprocess.Popen[bytes]] = {}

    async def launch(self, connection: socket.socket, folder: Path, options: str, log: Path) -> int:
        with connection, log.open("ab") as output:
            command = [sys.executable, "-m", "tests.unit.serving.vllm_double", str(connection.fileno())]
            process = subprocess.Popen(
                [*command, str(folder), options], pass_fds=(connection.fileno(),), stdout=output, stderr=output
            )
        self.started[process.pid] = process
        return process.pid

    def kill(self, pid: int) -> None:
        self.started[pid].kill()

    async def ended(self, pid: int) -> int:
        return await asyncio.to_thread(self.started[pid].wait)


def with_worker(
    work: Callable[[ProcessEngine], Awaitable[None]], tmp_path: Path, folder: Path | None = None, **options: Any
) -> None:
    chosen = {"device": "cuda", "gpu_share": 0.5, "slots": 4, "engine": "vllm", **options}

    async def main() -> None:
        launcher: Any = Processes()
        engine = await start_engine(
            launcher, folder or model_path(), EngineOptions(**chosen), tmp_path / "engines.log", 60
        )
        try:
            await work(engine)
        finally:
            await engine.close()

    asyncio.run(asyncio.wait_for(main(), 90))


async def answer(engine: ProcessEngine, **request: Any) -> tuple[Prepared, str, Delta]:
    pieces = [piece async for piece in engine.generate(Generation(**request))]
    deltas = [piece for piece in pieces if isinstance(piece, Delta)]
    assert isinstance(pieces[0], Prepared)
    return pieces[0], "".join(piece.text for piece in deltas), deltas[-1]


def test_a_worker_serves_vllm_over_its_socket(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}, "ok": {"type": "boolean"}},
        "required": ["n", "ok"],
        "additionalProperties": False,
    }

    async def work(engine: ProcessEngine) -> None:
        assert engine.info.engine.startswith("vllm")
        assert (engine.info.slots, engine.info.context_length, engine.info.batched) == (4, 512, True)
        again = [await answer(engine, prompt="Sort", new_tokens=12, seed=seed) for seed in (1, 1, 2)]
        assert again[0][1] == again[1][1] != again[2][1]
        many = [answer(engine, prompt=f"Question {n}", new_tokens=20, temperature=0, top_logprobs=2) for n in range(9)]
        for prepared, _, last in await asyncio.gather(*many):
            assert prepared.new_tokens == 20
            assert last.finish in ("stop", "length")
        _, text, last = await answer(engine, prompt="JSON:", new_tokens=120, schema=json.dumps(schema), top_logprobs=5)
        assert last.finish == "stop"
        jsonschema.validate(json.loads(text), schema)
        with pytest.raises(PromptError, match="JSON schema") as refused:
            await answer(engine, prompt="JSON:", schema='{"not":{"type":"object"}}')
        assert refused.value.code == "invalid_json_schema"
        with pytest.raises(PromptError, match="cannot embed") as lacking:
            await engine.embed(["a text"], True)
        assert (lacking.value.code, lacking.value.param) == ("embeddings_unavailable", "model")
        assert engine.alive

    with_worker(work, tmp_path)


def test_a_failed_step_ends_the_worker(tmp_path: Path) -> None:
    async def work(engine: ProcessEngine) -> None:
        assert engine.info.context_length == 256, "a shorter cache shortens the context"
        other = asyncio.create_task(answer(engine, prompt=[1, 2], new_tokens=200, stop=("\0",)))
        with pytest.raises(CompressionError, match="illegal memory access"):
            await answer(engine, prompt=vllm.POISON)
        with pytest.raises((CompressionError, EngineDiedError)):  # whether it ran already or waited still
            await other
        await asyncio.wait_for(asyncio.shield(engine._listener), 20)
        assert not engine.alive
        with pytest.raises(EngineDiedError):
            await answer(engine, prompt="again")

    with_worker(work, tmp_path, cache_tokens=100)


@pytest.mark.parametrize(
    ("options", "kind", "reason"),
    [
        ({"gpu_share": 0.8}, LoadMemoryError, "80% of the GPU's memory free, 6400 MB, got 6000 MB"),
        ({"device": "cuda:1"}, UnavailableError, "CUDA_VISIBLE_DEVICES"),
        ({"device": "cpu"}, UnavailableError, "the device is 'cpu'"),
    ],
)
def test_what_vllm_lacks_is_said(options: Any, kind: type[Exception], reason: str, tmp_path: Path) -> None:
    async def nothing(_: ProcessEngine) -> None:
        pytest.fail("it loaded")

    with pytest.raises(kind, match=reason):
        with_worker(nothing, tmp_path, **options)


def test_a_share_that_is_too_small_is_a_lack_of_memory(tmp_path: Path) -> None:
    async def nothing(_: ProcessEngine) -> None:
        pytest.fail("it loaded")

    folder = tmp_path / "needs-memory"
    folder.symlink_to(model_path())
    with pytest.raises(LoadMemoryError, match="No available memory for the cache blocks"):
        with_worker(nothing, tmp_path, folder)


def test_vllm_that_is_not_installed_is_refused() -> None:
    with pytest.raises(UnavailableError, match="not installed"):
        load_engine(model_path(), EngineOptions(device="cuda", engine="vllm"))
    result = CliRunner().invoke(app, ["serve", "demo", "--engine", "vllm", "--device", "cuda"])
    assert isinstance(result.exception, UnavailableError) or "not installed" in result.output
    assert result.exit_code != 0


def test_engines_are_asked_for_by_name(tmp_path: Path) -> None:
    assert load_engine(model_path(), EngineOptions(engine="transformers")).engine.startswith("transformers")
    with pytest.raises(ConfigurationError, match="must be run by transformers"):
        load_engine(model_path(), EngineOptions(engine="llama.cpp"))
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ConfigurationError, match=r"must be run by llama\.cpp"):
        load_engine(tmp_path, EngineOptions(device="cuda", engine="vllm"))
    with pytest.raises(ModelError, match="does not exist"):
        load_engine(tmp_path / "none", EngineOptions(engine="vllm"))
    result = CliRunner().invoke(app, ["serve", "demo", "--engine", "tgi"])
    assert isinstance(result.exception, ConfigurationError) or "one of auto" in result.output
