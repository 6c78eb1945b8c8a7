"""How the server's memory moves, and whether it looks like a leak."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from agentic_compression.resident_memory import resident_bytes

__all__ = ["MemoryWatch", "looks_like_a_leak"]

_FEWEST = 20
_GROWTH_BYTES = 50_000_000
_GROWTH_SHARE = 0.2
_RISING_SHARE = 0.7


def looks_like_a_leak(samples: Sequence[int]) -> bool:
    """Whether memory grew steadily: by 50 MB and a fifth at least, in most steps, and in the last third too.

    A heuristic: caches that fill up look the same for a while, and a leak slower than that goes unseen.
    """
    if len(samples) < _FEWEST:
        return False
    growth = samples[-1] - samples[0]
    steps = [later - earlier for earlier, later in itertools.pairwise(samples)]
    rising = sum(step > 0 for step in steps) / len(steps)
    late = samples[-1] - samples[-len(samples) // 3]
    return growth > max(_GROWTH_BYTES, _GROWTH_SHARE * samples[0]) and rising >= _RISING_SHARE and late > growth * 0.15


class MemoryWatch:
    """Samples of the server's own memory, one every ``every_s``.

    Args:
        engines: memory of each engine's process by name, in bytes.
        every_s: between two samples.
    """

    def __init__(self, engines: Callable[[], dict[str, int]], every_s: float = 10.0) -> None:
        self._engines, self._every = engines, every_s
        self._samples: deque[tuple[float, int]] = deque(maxlen=360)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            self._samples.append((time.time(), resident_bytes()))
            await asyncio.sleep(self._every)

    def report(self) -> dict[str, Any]:
        """Bytes now, by process, and what the samples say."""
        values = [value for _, value in self._samples]
        server, engines = resident_bytes(), self._engines()
        return {
            "pid": os.getpid(),
            "server_bytes": server,
            "engine_bytes": engines,
            "total_bytes": server + sum(engines.values()),
            "samples": len(values),
            "sampled_seconds": self._samples[-1][0] - self._samples[0][0] if values else 0.0,
            "lowest_bytes": min(values, default=server),
            "highest_bytes": max(values, default=server),
            "leak_suspected": looks_like_a_leak(values),
        }
