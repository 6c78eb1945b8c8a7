"""How long work reports where it is: ``progress("gptq", done, total)``, and what a study is doing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Announcer", "Progress", "no_progress"]


class Progress(Protocol):
    """Called as work advances; must be cheap and must not raise."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


class Announcer:
    """Tells one listener what a study is doing: ``announce("planned", episode=3, strategy="gptq:bits=4")``.

    Without a listener it does nothing. The listener is called in the thread that does the work.
    """

    def __init__(self) -> None:
        self.listener: Callable[[str, dict[str, Any]], None] | None = None

    def __call__(self, event: str, /, **facts: Any) -> None:
        """Pass the event on."""
        if self.listener is not None:
            self.listener(event, facts)
