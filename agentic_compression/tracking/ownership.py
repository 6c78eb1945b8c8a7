"""Who works on a claimed episode: host, boot and process, so that a claim of a dead process can be told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["owner_is_alive", "owner_of_this_process"]

_FOREIGN_CLAIM_S = 24 * 3600


def owner_of_this_process() -> str:
    """``host/boot/pid/start``; the start time tells a reused process id apart."""
    return f"{socket.gethostname()}/{_boot_id()}/{os.getpid()}/{_start_time(os.getpid())}"


def owner_is_alive(owner: str, claimed_seconds_ago: float = 0.0) -> bool:
    """Whether that process still runs; one on another host is taken to run for a day after its claim."""
    host, _, rest = owner.partition("/")
    boot, _, rest = rest.partition("/")
    pid, _, start = rest.partition("/")
    if not pid.isdigit():
        return False
    if host != socket.gethostname():
        return claimed_seconds_ago < _FOREIGN_CLAIM_S
    return boot == _boot_id() and _start_time(int(pid)) == start


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"


def _start_time(pid: int) -> str:
    """Clock ticks after boot at which the process began; empty when there is none or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if fields[0] in {"Z", "X"} else fields[19]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return ""
