"""How long work reports where it is: ``progress("gptq", done, total)``."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "no_progress"]


class Progress(Protocol):
    """Called as work advances; must be cheap and must not raise."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""
