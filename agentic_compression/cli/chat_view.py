"""What ``acf chat`` shows: answers as they are written, and what they took."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

if TYPE_CHECKING:
    from agentic_compression.serving.talk import Reply, Side

__all__ = ["ChatView", "comparison", "cost_line", "printable"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_HINT = "/reset forgets the conversation, /quit or the end of the input ends; Ctrl-C stops an answer"


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours or turn the direction of writing."""
    return _CONTROL.sub("", text)


class ChatView:
    """Answers go to standard output, everything else to standard error.

    Args:
        names: of the models, one or two.
        as_json: print objects instead of text.
        once: there is one question, from the command line.
    """

    def __init__(self, names: Sequence[str], *, as_json: bool, once: bool) -> None:
        self._names, self._as_json, self._once = names, as_json, once
        self._out, self._err = Console(highlight=False), Console(stderr=True, highlight=False)
        self._texts = [""] * len(names)
        if sys.stdin.isatty():
            with suppress(ImportError):  # absent on Windows; typed lines can be edited with it
                importlib.import_module("readline")

    def opened(self, sides: Sequence[Side]) -> None:
        """Say what was loaded."""
        for side in sides:
            info = side.engine.info
            self.note(
                f"{side.name} ({side.target.label}): {info.engine} on {info.device}, context of {info.context_length} "
                f"tokens, weights {info.weights_bytes / 1e6:.1f} MB"
            )
        if reason := sides[0].counter.reason:
            self.note(f"energy is {sides[0].counter.source}: {reason}")
        if not self._once:
            self.hint()

    def note(self, text: str) -> None:
        """One line beside the answers."""
        self._err.print(f"[dim]{escape(printable(text))}[/]", soft_wrap=True)

    def hint(self) -> None:
        """What can be typed."""
        self.note(_HINT)

    def complain(self, text: str) -> None:
        """A question that could not be asked."""
        self._err.print(f"[red]{escape(printable(text))}[/]", soft_wrap=True)

    def read(self) -> str:
        """The next line.

        Raises:
            EOFError: at the end of the input.
        """
        if sys.stdin.isatty() and not self._as_json:
            return input("> ")
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line

    @contextmanager
    def answering(self) -> Iterator[Callable[[int, str], None]]:
        """Gives the function that takes in pieces of the answer of a model, by its place."""
        self._texts = [""] * len(self._names)
        if self._as_json:
            yield lambda place, text: None
        elif len(self._names) > 1 and self._out.is_terminal:
            with Live(console=self._out, transient=True, refresh_per_second=8, vertical_overflow="crop") as live:
                yield lambda place, text: self._draw(live, place, text)
            self._out.print(self._panels())
        else:
            yield self._stream

    def answered(self, place: int, reply: Reply) -> None:
        """What one answer took."""
        if self._as_json:
            sys.stdout.write(reply.model_dump_json() + "\n")
            sys.stdout.flush()
        elif len(self._names) == 1 or not self._out.is_terminal:
            self._out.print()

    def summarize(self, replies: Sequence[Reply]) -> None:
        """What the answers to a question took, and how they compare."""
        if self._as_json:
            return
        for reply in replies:
            name = f"{reply.model}: " if len(self._names) > 1 else ""
            self.note(name + cost_line(reply))
        if len(replies) == 2:
            self._err.print(escape(printable(comparison(*replies))), soft_wrap=True)

    def _stream(self, place: int, text: str) -> None:
        if not self._texts[place] and len(self._names) > 1:
            self._out.print(f"[bold]{escape(self._names[place])}[/]")
        self._texts[place] += text
        self._out.print(Text(printable(text)), end="", soft_wrap=True)

    def _draw(self, live: Live, place: int, text: str) -> None:
        self._texts[place] += text
        live.update(self._panels())

    def _panels(self) -> Columns:
        width = max(20, self._out.width // len(self._names) - 1)
        panels = [
            Panel(Text(printable(text)), title=escape(name), width=width)
            for name, text in zip(self._names, self._texts, strict=True)
        ]
        return Columns(panels)


def cost_line(reply: Reply) -> str:
    """``24 tokens, 61.3 tokens/s, first after 12 ms, 0.42 J (estimated: …), 310 MB``."""
    parts = [f"{reply.tokens} tokens"]
    if reply.tokens_per_second is not None:
        parts.append(f"{reply.tokens_per_second:.1f} tokens/s")
    if reply.first_token_s is not None:
        parts.append(f"first after {reply.first_token_s * 1000:.0f} ms")
    if reply.joules is not None:
        parts.append(f"{reply.joules:.3g} J ({reply.energy_source}: {reply.energy_method})")
    if reply.memory_bytes is not None:
        parts.append(f"{reply.memory_bytes / 1e6:.0f} MB")
    endings = {"length": "cut at --max-tokens", "interrupted": "stopped"}
    if reply.finish in endings:
        parts.append(endings[reply.finish])
    if reply.truncated:
        parts.append("oldest turns left out")
    return ", ".join(parts)


def comparison(first: Reply, second: Reply) -> str:
    """The second beside the first: speed, memory, energy a token, each with the quotient."""
    parts = [
        _beside("speed", first.tokens_per_second, second.tokens_per_second, 1, "tokens/s"),
        _beside("memory", first.memory_bytes, second.memory_bytes, 1e-6, "MB"),
        _beside(f"energy ({second.energy_source})", first.joules_per_token, second.joules_per_token, 1, "J/token"),
    ]
    return f"{second.model} beside {first.model}: " + "; ".join(parts)


def _beside(what: str, first: float | None, second: float | None, scale: float, unit: str) -> str:
    if first is None or second is None:
        return f"{what} unknown"
    quotient = f" ({second / first:.2f}x)" if first > 0 else ""
    return f"{what} {second * scale:.3g} for {first * scale:.3g} {unit}{quotient}"
