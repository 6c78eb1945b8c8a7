"""System calls that Python 3.11 does not wrap, by number, with errors raised as ``OSError``."""

from __future__ import annotations

import ctypes
import os
from typing import Any

__all__ = ["drop_capabilities", "prctl", "raw_call", "unshare"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_CAPSET = {"x86_64": 126, "aarch64": 91}
_UNSHARE = {"x86_64": 272, "aarch64": 97}
_CAPABILITY_VERSION_3 = 0x20080522


def raw_call(number: int, *arguments: Any) -> int:
    """``syscall(number, …)``; integers are passed as 64-bit registers."""
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    done = int(_libc.syscall(ctypes.c_long(number), *wide))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def prctl(option: int, *arguments: Any) -> int:
    """``prctl(option, …)``."""
    wide = [ctypes.c_ulong(item) if isinstance(item, int) else item for item in arguments]
    wide += [ctypes.c_ulong(0)] * (4 - len(wide))
    done = int(_libc.prctl(ctypes.c_int(option), *wide))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def unshare(flags: int) -> None:
    """Leave the namespaces named by the ``CLONE_NEW…`` flags for fresh ones."""
    raw_call(_number(_UNSHARE), flags)


def drop_capabilities() -> None:
    """Empty the permitted, effective and inheritable sets of this process."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    raw_call(_number(_CAPSET), ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _number(table: dict[str, int]) -> int:
    machine = os.uname().machine
    if machine not in table:
        raise OSError(0, f"the system call's number is not known for {machine}, only for {', '.join(table)}")
    return table[machine]
