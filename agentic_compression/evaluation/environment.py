"""Where a number is measured: device, CPU, cores, threads, package versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from functools import cache
from pathlib import Path

from agentic_compression.errors import UnavailableError
from agentic_compression.records import Environment, EvaluationSettings

__all__ = ["cpu_model", "describe_environment", "resolve_device", "resolve_threads", "usable_cores"]

_PACKAGES = (
    "agentic-compression",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "lm-eval",
    "datasets",
    "compressed-tensors",
    "xllamacpp",
    "vllm",
    "numpy",
    "codecarbon",
)


def resolve_device(setting: str) -> str:
    """``auto``, ``cpu`` or ``cuda[:n]`` as a device this process can use: ``cpu`` or ``cuda:n``.

    Counts GPUs through NVML, which does not start CUDA in this process, so that it may still fork.

    Raises:
        UnavailableError: when a GPU is asked for and there is none.
    """
    import torch

    count = torch.cuda.device_count() if setting != "cpu" else 0
    if setting == "cpu" or (setting == "auto" and count == 0):
        return "cpu"
    index = int(setting.partition(":")[2] or 0)
    if index >= count:
        raise UnavailableError(f"device {setting!r} is not here: torch sees {count} GPUs; use device: auto or cpu")
    return f"cuda:{index}"


def usable_cores() -> int:
    """Cores this process may run on (the affinity mask, not the machine's total)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_threads(settings: EvaluationSettings) -> int:
    """``settings.threads``, or every usable core but one.

    The spare core takes what else runs: with as many threads as cores, whichever thread shares its core makes the
    others wait at every parallel call, and a small model's latency triples.
    """
    return settings.threads or max(1, usable_cores() - 1)


@cache
def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_environment(device: str, threads: int, runtime: str = "transformers") -> Environment:
    """The record of this machine, this Python and what ran the model."""
    import psutil

    return Environment(
        device=_device_name(device),
        cpu=cpu_model(),
        cores=usable_cores(),
        threads=threads,
        memory_total_gb=round(psutil.virtual_memory().total / 1e9, 3),
        python=platform.python_version(),
        platform=platform.platform(),
        packages=_versions(),
        runtime=runtime,
    )


def _device_name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
