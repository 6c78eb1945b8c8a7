"""A conversation with a model: what is remembered, what is measured, what fits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from agentic_compression.cli.chat import _answer, _end_answers, _named, _questions, _targets
from agentic_compression.cli.chat_view import comparison, cost_line, printable
from agentic_compression.errors import ConfigurationError, UnavailableError
from agentic_compression.evaluation.energy import CpuTimeCounter
from agentic_compression.serving import talk
from agentic_compression.serving.engine import Delta, EngineOptions, Generation, Prepared, PromptError
from agentic_compression.serving.sources import Target
from agentic_compression.serving.talk import Reply, Side, TalkOptions, counter_of, open_sides

OPTIONS = TalkOptions(new_tokens=50, temperature=0.5, system="Be kind.")


class Engine:
    """Says what it is told to, a word a piece, and keeps what it was asked."""

    info = SimpleNamespace(pid=1)

    def __init__(self, text: str, hangs_after: int = 99) -> None:
        self.words, self.hangs_after = text.split(), hangs_after
        self.asked: list[Generation] = []
        self.closed = 0

    async def generate(self, request: Generation) -> AsyncGenerator[Prepared | Delta, None]:
        self.asked.append(request)
        try:
            if not self.words:
                raise PromptError("no")
            yield Prepared(7, False, 50)
            for number, word in enumerate(self.words):
                if number == self.hangs_after:
                    await asyncio.Event().wait()
                await asyncio.sleep(0.01)
                yield Delta(f"{word} ", 1, "stop" if number == len(self.words) - 1 else None)
        finally:
            self.closed += 1


def side_of(engine: Engine, seconds: list[float]) -> Side:
    counter = CpuTimeCounter(10.0, clock=lambda: seconds.pop(0))
    memory = SimpleNamespace(used_by=lambda pid: 123, free=lambda: 0)
    return Side("it", Target(Path("/models/it")), engine, memory, counter)  # type: ignore[arg-type]


def test_turns_are_remembered_and_the_answer_is_measured() -> None:
    engine, shown = Engine("one two three"), []
    side = side_of(engine, [1.0, 1.5, 2.0, 3.0])
    reply = asyncio.run(side.answer("Count", OPTIONS, 3, shown.append))
    assert (reply.text, reply.finish, reply.tokens) == ("one two three ", "stop", 3)
    assert shown == ["one ", "two ", "three "]
    assert (reply.joules, reply.energy_source, reply.memory_bytes) == (5.0, "estimated", 123)
    assert reply.first_token_s is not None
    assert 0.01 <= reply.first_token_s < reply.seconds
    assert reply.tokens_per_second == pytest.approx(2 / (reply.seconds - reply.first_token_s))
    asyncio.run(side.answer("Again", OPTIONS, 3, shown.append))
    roles = [turn["role"] for turn in engine.asked[1].messages or ()]
    assert roles == ["system", "user", "assistant", "user"]
    side.reset()
    assert side.history == []


def test_a_stopped_answer_is_kept_as_far_as_it_came() -> None:
    engine = Engine("one two three", hangs_after=2)
    side = side_of(engine, [0.0, 1.0])

    async def stop() -> Reply:
        task = asyncio.create_task(side.answer("Count", OPTIONS, 3, lambda text: None))
        await asyncio.sleep(0.3)
        task.cancel()
        return await task

    reply = asyncio.run(stop())
    assert (reply.text, reply.finish, reply.tokens) == ("one two ", "interrupted", 2)
    assert side.history[-1] == {"role": "assistant", "content": "one two "}
    assert engine.closed == 1, "its slot is free again"


def test_a_question_that_is_refused_leaves_the_conversation_as_it_was() -> None:
    side = side_of(Engine(""), [0.0, 1.0])
    side.history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(PromptError):
        asyncio.run(side.answer("Count", OPTIONS, 3, lambda text: None))
    assert len(side.history) == 2


def test_models_that_do_not_fit_together_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * 8_000_000)
    monkeypatch.setattr(talk, "open_memory", lambda device: SimpleNamespace(free=lambda: 100_000_000))
    monkeypatch.setattr(talk, "Launcher", None)
    targets = {name: Target(tmp_path / name) for name in ("a", "b")}

    async def load() -> None:
        async with open_sides(targets, EngineOptions(), lambda pid: CpuTimeCounter(1.0), tmp_path, 5):
            pass

    with pytest.raises(UnavailableError, match="a about 74 MB, b about 74 MB must fit the 100 MB"):
        asyncio.run(load())


def test_what_one_side_does_not_answer_both_forget() -> None:
    first, second = side_of(Engine("one two"), [0.0, 1.0, 2.0, 3.0]), side_of(Engine(""), [0.0, 1.0])
    said: list[str] = []
    view: Any = SimpleNamespace(
        answering=lambda: nullcontext(lambda place, text: None),
        answered=lambda place, reply: said.append(f"{place}: {reply.finish}"),
        complain=lambda text: said.append("complaint"),
        note=said.append,
        summarize=lambda replies: None,
    )
    with asyncio.Runner() as runner:
        _answer(runner, view, [first, second], "Count", OPTIONS, keep_going=True)
        assert said == ["0: stop", "complaint", "not answered by both, so forgotten by both"]
        assert first.history == second.history == []
        _answer(runner, view, [first], "Count", OPTIONS, keep_going=True)
        assert len(first.history) == 2


def test_an_answer_left_half_stopped_does_not_go_on_into_the_next() -> None:
    engine = Engine("one two three", hangs_after=1)
    side = side_of(engine, [0.0, 1.0])

    async def leave() -> None:
        left = asyncio.create_task(_named(side.answer("Count", OPTIONS, 3, lambda text: None)))
        await asyncio.sleep(0.2)
        assert not left.done()

    with asyncio.Runner() as runner:
        runner.run(leave())
        assert engine.closed == 0
        runner.run(_end_answers())
        assert engine.closed == 1


def test_lines_are_questions_or_commands() -> None:
    lines = iter(["", " hello ", "/reset", "/nonsense", KeyboardInterrupt, "again", "/quit", "never"])
    said: list[str] = []

    def read() -> str:
        line = next(lines)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return str(line)

    view: Any = SimpleNamespace(read=read, hint=lambda: said.append("hint"), note=said.append)
    sides: Any = [SimpleNamespace(reset=lambda: said.append("reset"))]
    assert list(_questions(view, sides)) == ["hello", "again"]
    assert said == ["reset", "forgotten", "hint", "hint"]


def reply_of(model: str, speed: float | None, memory: int | None, joules: float) -> Reply:
    return Reply(
        model=model,
        version="v",
        text="x",
        finish="length",
        prompt_tokens=3,
        truncated=False,
        tokens=4,
        first_token_s=0.012,
        seconds=1.0,
        tokens_per_second=speed,
        joules=joules,
        joules_per_token=joules / 4,
        energy_source="estimated",
        energy_method="CPU time",
        memory_bytes=memory,
    )


def test_costs_are_told_and_compared() -> None:
    first, second = reply_of("big", 20.0, 400_000_000, 8.0), reply_of("small", 50.0, 100_000_000, 2.0)
    assert cost_line(first) == (
        "4 tokens, 20.0 tokens/s, first after 12 ms, 8 J (estimated: CPU time), 400 MB, cut at --max-tokens"
    )
    told = comparison(first, second)
    assert told == (
        "small beside big: speed 50 for 20 tokens/s (2.50x); memory 100 for 400 MB (0.25x); "
        "energy (estimated) 0.5 for 2 J/token (0.25x)"
    )
    assert "speed unknown; memory unknown" in comparison(first, reply_of("s", None, None, 1.0))


def test_an_answer_cannot_draw_on_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\tc\nd\u202ee\x9b1m") == "a[2Jb\tc\nde1m"


def test_the_baseline_is_episode_0_of_the_study_that_made_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import agentic_compression.study

    folders = {name: tmp_path / name for name in ("original", "small", "stranger")}
    for folder in folders.values():
        folder.mkdir()
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    records = [
        SimpleNamespace(episode=number, checkpoint=SimpleNamespace(path=str(folders[name])))
        for number, name in enumerate(("original", "small"))
    ]
    bench = SimpleNamespace(
        settings=SimpleNamespace(experiments=tmp_path / "experiments"),
        history=SimpleNamespace(records=lambda study: [*records, SimpleNamespace(episode=2, checkpoint=None)]),
    )
    monkeypatch.setattr(agentic_compression.study, "open_workbench", lambda: bench)
    targets = _targets(str(folders["small"]), "baseline")
    assert [target.folder for target in targets.values()] == [folders["small"], folders["original"]]
    with pytest.raises(ConfigurationError, match="name the other model"):
        _targets(str(folders["stranger"]), "baseline")
    with pytest.raises(ConfigurationError, match="the same checkpoint"):
        _targets(str(folders["small"]), str(folders["small"]))


def test_estimated_energy_is_that_of_the_engines_process_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        counter = counter_of(CpuTimeCounter(99.0, reason="no counter"), busy.pid, 10.0)
        assert (counter.source, counter.reason) == ("estimated", "no counter")
        time.sleep(0.5)
        times = psutil.Process(busy.pid).cpu_times()
        assert counter.joules() / 10 == pytest.approx(times.user + times.system, abs=0.1)
        busy.kill()
    measured: Any = SimpleNamespace(source="measured")
    assert counter_of(measured, 1, 10.0) is measured
