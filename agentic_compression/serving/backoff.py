"""Why a model did not load, and how long it is not tried again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from agentic_compression.serving.errors import RequestError, as_request_error
from agentic_compression.serving.sources import Target

__all__ = ["Backoff"]

_FIRST_S = 1.0
_LONGEST_S = 60.0


class Backoff:
    """Holds loads off after a failure: for 1 s, twice as long after every further one, 60 s at most.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.failures = 0
        self.target: Target | None = None
        """What failed last; None when not even that was known."""
        self._error: Exception | None = None
        self._until = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until the next try; 0 when it may come now."""
        return max(0.0, self._until - self._clock()) if self.failures else 0.0

    def failed(self, target: Target | None, error: Exception) -> None:
        """Remember a failure; one of another target begins anew."""
        self.failures = self.failures + 1 if target == self.target else 1
        self.target, self._error = target, error
        self._until = self._clock() + min(_LONGEST_S, _FIRST_S * 2 ** min(self.failures - 1, 16))

    def reset(self) -> None:
        """Forget: a load succeeded, or something else is to be loaded."""
        self.failures, self.target, self._error = 0, None, None

    def check(self) -> None:
        """Raise RequestError (503) with the remembered problem and the seconds to wait, while loads are held off."""
        wait = self.wait_s
        if wait == 0 or self._error is None:
            return
        known = as_request_error(self._error)
        code, text = (
            (known.code, str(known)) if known.status == 503 else ("model_unavailable", "the model cannot be loaded")
        )
        seconds = math.ceil(wait)
        raise RequestError(
            503,
            code,
            f"{text}; it is tried again in {seconds} s",
            suggestions=known.suggestions,
            headers={"Retry-After": str(seconds)},
        ) from self._error
