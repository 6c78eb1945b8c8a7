"""How much memory this process has, has had at most, and may still take."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["free_bytes", "give_back_heap", "peak_bytes", "reset_peak", "resident_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_CGROUPS = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """This process's resident set now."""
    import psutil

    status = _status_bytes("VmRSS")
    return status if status is not None else int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Begin a new peak of the resident set; False where the kernel cannot."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The peak of the resident set since the last reset, or over the process's life where there is no reset."""
    status = _status_bytes("VmHWM")
    if status is not None:
        return status
    import resource

    lifetime = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return lifetime if sys.platform == "darwin" else lifetime * 1024


def give_back_heap() -> None:
    """Return free heap pages to the system, so that growth cannot hide in them (glibc only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device: str = "cpu") -> int:
    """Bytes a new process can take: what the system has available, less where a control group allows less.

    Args:
        device: on ``cuda``, ``cuda:1`` … the free memory of that GPU.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    available = int(psutil.virtual_memory().available)
    return min([available, *_left_in_groups()])


def _left_in_groups() -> list[int]:
    """Bytes that the limits of this process's control groups leave; page cache counts as free, as the kernel drops it.

    A child group cannot have more than its parents, so that every level is asked.
    """
    found = []
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, name = line.split(":", 2)
            unified = number == "0" and not controllers
            if not unified and "memory" not in controllers.split(","):
                continue
            root = _CGROUPS if unified else _CGROUPS / "memory"
            files = ("memory.max", "memory.current") if unified else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            folder = root / name.strip("/")
            for level in (folder, *folder.parents):
                if level == _CGROUPS.parent or not level.is_relative_to(root):
                    break
                found.extend(_left(level, *files))
    return found


def _left(group: Path, limit_name: str, usage_name: str) -> list[int]:
    try:
        limit = (group / limit_name).read_text().strip()
        usage = int((group / usage_name).read_text())
        if limit == "max":
            return []
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    cache = int(statistics.get("inactive_file", statistics.get("total_inactive_file", 0)))
    return [max(0, int(limit) - max(0, usage - cache))]


def _status_bytes(field: str) -> int | None:
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None
