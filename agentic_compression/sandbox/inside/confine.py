"""What worker and tester do to themselves before they read a single byte of a program."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

from agentic_compression.sandbox.inside import landlock, mounts, seccomp
from agentic_compression.sandbox.inside.kernel import drop_capabilities, prctl

__all__ = ["confine", "die_with_parent", "tasks_of_this_user"]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_NOBODY = 65534


def die_with_parent() -> None:
    """The kernel kills this process when the one that made it ends; a change of user takes this back."""
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def tasks_of_this_user() -> int:
    """Processes and threads that this user has already, which RLIMIT_NPROC counts too."""
    count, uid = 0, os.getuid()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == uid:
                count += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:  # ended meanwhile
            continue
    return count


def confine(layers: list[str], limits: dict[str, Any], *, own_user: bool, tasks_before: int) -> None:
    """Resource limits, no privileges, and those of the kernel's filters that ``layers`` names; for good.

    ``own_user``: become a user that owns nothing (needs root). ``tasks_before``: tasks of this user to allow for
    besides the program's.

    Raises:
        OSError: a layer that is named does not work; the caller must end.
    """
    os.setsid()
    scratch = mounts.SCRATCH if "namespaces" in layers else None
    readable = mounts.readable_paths() if "landlock" in layers and scratch is None else _top_folders(scratch)
    _limit_resources(limits)
    if own_user:
        _become_nobody_else()
        tasks_before = 0
    _limit(resource.RLIMIT_NPROC, tasks_before + limits["processes"])
    prctl(_PR_SET_DUMPABLE, 0)
    drop_capabilities()
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    die_with_parent()
    if "landlock" in layers:
        landlock.restrict([*readable, os.getcwd()], [scratch] if scratch else [])
    if "seccomp" in layers:
        seccomp.install()


def _top_folders(scratch: str | None) -> list[str]:
    """All of the private tree but the scratch folder: there is nothing in it that must not be read."""
    if scratch is None:
        return []
    return [f"/{name}" for name in os.listdir("/") if f"/{name}" != scratch]


def _limit_resources(limits: dict[str, Any]) -> None:
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    _limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    _limit(resource.RLIMIT_NOFILE, limits["open_files"])
    _limit(resource.RLIMIT_CPU, limits["cpu_seconds"])
    _limit(resource.RLIMIT_AS, limits["memory_bytes"])


def _limit(kind: int, value: int) -> None:
    """Lower both bounds to ``value``, or leave the hard one where it is lower already."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _become_nobody_else() -> None:
    """A fresh user for every process, so that no other process is its equal; nobody where the range is not mapped."""
    for uid in (0x70000000 + int.from_bytes(os.urandom(3), "big"), _NOBODY):
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            break
        except OSError:
            continue
    if 0 in os.getresuid() + os.getresgid():
        raise OSError(0, "cannot give up root")
