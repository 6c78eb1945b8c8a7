"""``acf chat``: talk to a model in the terminal, or to two and compare them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentic_compression.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine, Iterator

    from agentic_compression.cli.chat_view import ChatView
    from agentic_compression.serving.sources import Target
    from agentic_compression.serving.talk import Reply, Side, TalkOptions

__all__ = ["chat"]

_ANSWER = "answer of a chat"
_MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION, a checkpoint folder, or 'demo'."


def chat(
    model: Annotated[str, typer.Argument(help=_MODEL)] = "demo",
    versus: Annotated[
        str | None,
        typer.Option(help=f"Answer with a second model too: 'baseline', the model it was made of, or {_MODEL}"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.", min=1, max=32_768)] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.", min=0, max=2)] = 0.7,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Answer this once and end.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object an answer on standard output.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads; half the cores when left out.", min=1)] = None,
) -> None:
    """Talk to MODEL. After every answer: tokens a second, time to the first token, memory, energy.

    With --versus both answer every question, one after the other so that neither slows the other, each with a memory
    of its own conversation. The first message of each conversation is the system text. Commands: /reset forgets the
    conversation, /quit ends, as does the end of the input. Ctrl-C stops an answer.

    Examples:

      acf chat

      acf chat models:/demo--demo@champion --versus baseline

      acf chat ./small --prompt "Put 6 3 4 in order." --temperature 0 --json
    """
    import asyncio

    from agentic_compression.cli.chat_view import ChatView
    from agentic_compression.serving.talk import TalkOptions

    targets = _targets(model, versus)
    options = TalkOptions(new_tokens=max_tokens, temperature=temperature, system=system)
    view = ChatView(list(targets), as_json=as_json, once=prompt is not None)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            sides = runner.run(_open(stack, targets, device, threads, max_tokens))
            view.opened(sides)
            for question in iter([prompt]) if prompt is not None else _questions(view, sides):
                _answer(runner, view, sides, question, options, keep_going=prompt is None)
        finally:
            runner.run(stack.aclose())


def _answer(
    runner: asyncio.Runner,
    view: ChatView,
    sides: list[Side],
    question: str,
    options: TalkOptions,
    *,
    keep_going: bool,
) -> None:
    """Ask each side in turn. A question that cannot be asked ends the program only where there is one question.

    What not every side has answered is forgotten by all, or their next answers would be to different conversations.
    """
    import secrets

    from agentic_compression.serving.engine import EngineBusyError, PromptError

    seed, replies = secrets.randbits(32), []
    before = [list(side.history) for side in sides]
    try:
        with view.answering() as show:
            for place, side in enumerate(sides):
                reply = runner.run(_named(side.answer(question, options, seed, partial(show, place))))
                view.answered(place, reply)
                replies.append(reply)
                if reply.finish == "interrupted":
                    break
    except (EngineBusyError, PromptError) as error:
        if not keep_going:
            raise
        view.complain(str(error))
    except KeyboardInterrupt:
        if not keep_going:
            raise
        runner.run(_end_answers())
    if len(replies) < len(sides):
        for side, history in zip(sides, before, strict=True):
            side.history = history
        if replies:
            view.note("not answered by both, so forgotten by both")
    view.summarize(replies)


async def _named(answer: Coroutine[Any, Any, Reply]) -> Reply:
    import asyncio

    task = asyncio.current_task()
    assert task is not None
    task.set_name(_ANSWER)
    return await answer


async def _end_answers() -> None:
    """One that a second Ctrl-C left half stopped must not go on into the next."""
    import asyncio

    left = [task for task in asyncio.all_tasks() if task.get_name() == _ANSWER]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _questions(view: ChatView, sides: list[Side]) -> Iterator[str]:
    """What the user types, but for commands, until the end."""
    while True:
        try:
            line = view.read()
        except EOFError:
            return
        except KeyboardInterrupt:
            view.hint()
            continue
        text = line.strip()
        if text in {"/quit", "/exit"}:
            return
        if text == "/reset":
            for side in sides:
                side.reset()
            view.note("forgotten")
        elif text.startswith("/"):
            view.hint()
        elif text:
            yield text


async def _open(
    stack: AsyncExitStack, targets: dict[str, Target], device: str, threads: int | None, new_tokens: int
) -> list[Side]:
    import os

    from agentic_compression.evaluation.energy import select_counter
    from agentic_compression.serving.engine import EngineOptions
    from agentic_compression.serving.talk import counter_of, open_sides
    from agentic_compression.settings import get_settings

    settings = get_settings()
    engine = EngineOptions(
        slots=1,
        queue=1,
        cache_tokens=settings.serve_cache_tokens,
        device=device,
        threads=threads or max(1, (os.cpu_count() or 2) // 2),
        max_new_tokens=new_tokens,
    )
    watts = settings.cpu_watts_per_core
    counter = select_counter(device, watts, gpu_watts=settings.gpu_watts)
    return await stack.enter_async_context(
        open_sides(
            targets, engine, lambda pid: counter_of(counter, pid, watts), settings.logs, settings.serve_load_timeout_s
        )
    )


def _targets(model: str, versus: str | None) -> dict[str, Target]:
    """What to load, by the name that it is shown under.

    Raises:
        ConfigurationError: when both are the same.
        ModelError: when one leads nowhere.
    """
    targets = {model: _target(model)}
    if versus is None:
        return targets
    other = _baseline(model, targets[model]) if versus == "baseline" and not Path(versus).is_dir() else _target(versus)
    if other.folder == targets[model].folder:
        raise ConfigurationError(f"--versus must be another model than {model}, got the same checkpoint")
    return {**targets, versus if versus != model else f"{versus} (2)": other}


def _target(reference: str) -> Target:
    from agentic_compression.demo import model_path
    from agentic_compression.serving.sources import FolderSource, RegistrySource

    if reference.startswith("models:/"):
        from agentic_compression.settings import get_settings
        from agentic_compression.tracking import open_client

        return RegistrySource(open_client(get_settings().mlflow_uri), reference).resolve()
    return FolderSource(model_path() if reference == "demo" else Path(reference).expanduser()).resolve()


def _baseline(reference: str, target: Target) -> Target:
    """Episode 0 of the study that made a checkpoint.

    Raises:
        ConfigurationError: when no study of this state root made it, or its baseline is gone.
    """
    from agentic_compression.registry import list_versions
    from agentic_compression.serving.sources import Target
    from agentic_compression.study import open_workbench

    bench = open_workbench()
    if reference.startswith("models:/"):
        name = reference.removeprefix("models:/").partition("@")[0].partition("/")[0]
        studies = [item.study for item in list_versions(bench.registry, name) if item.version == target.version]
    else:
        root = bench.settings.experiments
        studies = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for study in studies:
        records = bench.history.records(study)
        made = [record.checkpoint for record in records if record.checkpoint is not None]
        first = next((record.checkpoint for record in records if record.episode == 0), None)
        if first is not None and any(Path(item.path).resolve() == target.folder for item in made):
            return Target(Path(first.path).resolve())
    raise ConfigurationError(
        f"--versus baseline needs a checkpoint that a study of this state root made, got {reference}; "
        "name the other model instead"
    )
