"""Landlock: an unprivileged process gives up all of the file system but a few folders; landlock(7), Linux 5.13 on."""

from __future__ import annotations

import ctypes
import os
import struct

from agentic_compression.sandbox.inside.kernel import raw_call

__all__ = ["restrict"]

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_RIGHTS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}  # refer, truncate, ioctl
_MAKE_AND_REMOVE = sum(1 << bit for bit in (4, 5, 7, 8, 12))  # remove folder, file; make folder, file, symlink
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_TCP_BIND_AND_CONNECT, _ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3


def restrict(readable: list[str], writable: list[str]) -> None:
    """Allow reading below ``readable``, reading and writing below ``writable``, and nothing else; for good.

    TCP is denied from ABI 4 on, abstract sockets and signals to outside from ABI 6 on. Needs ``PR_SET_NO_NEW_PRIVS``.

    Raises:
        OSError: the kernel has no Landlock, or it is off.
    """
    abi = raw_call(_CREATE_RULESET, None, 0, 1)
    handled = _RIGHTS_BY_ABI[max(known for known in _RIGHTS_BY_ABI if known <= abi)]
    attributes = struct.pack(
        "=QQQ", handled, _TCP_BIND_AND_CONNECT if abi >= 4 else 0, _ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0
    )
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = raw_call(_CREATE_RULESET, ctypes.create_string_buffer(attributes, 24), size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_DIR)
        for path in writable:
            rights = _READ_FILE | _READ_DIR | _WRITE_FILE | _MAKE_AND_REMOVE | _REFER | _TRUNCATE
            _allow(ruleset, path, rights & handled)
        raw_call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _READ_FILE | _WRITE_FILE
        raw_call(_ADD_RULE, ruleset, 1, ctypes.create_string_buffer(struct.pack("=Qi", rights, handle), 12), 0)
    finally:
        os.close(handle)
