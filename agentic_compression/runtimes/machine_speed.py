"""How fast this machine reads memory and multiplies matrices; measured, never looked up.

What other processes take away is not the machine's rate, so every figure is that of the quickest of several short runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from agentic_compression.errors import ConfigurationError
from agentic_compression.resident_memory import free_bytes
from agentic_compression.runtimes.transformers_timing import clock_of

__all__ = ["matrix_flops", "quickest", "reading_bandwidth", "with_threads"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 32 << 20
_SMALLEST_BUFFER = 64 << 20
_BEYOND_CACHE = 8
_WIDTHS = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192)}
_DTYPES = ("float32", "bfloat16", "float16")


def quickest(work: Callable[[], object], seconds: float = 0.3, device: str = "cpu") -> float:
    """Seconds of the quickest of the runs that fit into ``seconds``, after one that is not counted; one at least."""
    work()
    clock, fastest, until = clock_of(device), math.inf, time.perf_counter() + seconds
    while fastest == math.inf or time.perf_counter() < until:
        began = clock.mark()
        work()
        ended = clock.mark()
        clock.settle()
        fastest = min(fastest, clock.milliseconds(began, ended) / 1e3)
    return fastest


def reading_bandwidth(device: str = "cpu", seconds: float = 0.4) -> float:
    """Bytes a second of reading a buffer eight times the size of the last cache, with torch's threads.

    The buffer is summed, which reads every byte once and writes nothing. It is smaller where a quarter of the free
    memory is less, which can only flatter the figure.
    """
    import torch

    wanted = _BEYOND_CACHE * _last_cache_bytes(device)
    size = max(_SMALLEST_BUFFER, min(wanted, free_bytes(device) // 4))
    values = torch.ones(size // 4, dtype=torch.float32, device=device)
    return values.nbytes / quickest(values.sum, seconds, device)


def matrix_flops(dtype: str = "float32", device: str = "cpu", seconds: float = 0.5) -> float:
    """Operations a second of a product of square matrices, the best of several widths, with torch's threads.

    Raises:
        ConfigurationError: when the type is none of float32, bfloat16 and float16.
    """
    import torch

    if dtype not in _DTYPES:
        raise ConfigurationError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}; measure another type")
    kind = device.partition(":")[0]
    best, until = 0.0, time.perf_counter() + seconds
    with torch.inference_mode():
        for width in _WIDTHS.get(kind, _WIDTHS["cpu"]):
            flops = 2 * width**3
            left = until - time.perf_counter()
            if best and 3 * flops / best > left:
                break  # a warm-up and two runs would not fit
            a = torch.rand(width, width, device=device).to(getattr(torch, dtype))
            product = torch.empty_like(a)
            best = max(best, flops / quickest(partial(torch.mm, a, a, out=product), left / 3, device))
    return best


@contextmanager
def with_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads, and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _last_cache_bytes(device: str) -> int:
    """Of the largest cache of the first core or of the GPU; a usual size where the system does not say."""
    if device.startswith("cuda"):
        import torch

        properties: Any = torch.cuda.get_device_properties(device)
        return int(getattr(properties, "L2_cache_size", 0)) or 2 * _USUAL_CACHE
    sizes = [_cache_size(path) for path in _CACHES.glob("index*/size")]
    return max(sizes, default=0) or _USUAL_CACHE


def _cache_size(path: Path) -> int:
    """``32768K`` as bytes."""
    try:
        text = path.read_text().strip()
        return int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1:], 0)
    except (OSError, ValueError):
        return 0
