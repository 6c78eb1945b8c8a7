"""Namespaces: a network without interfaces, and a tree of the standard library, shared libraries and a scratch folder.

Root makes them directly; anyone else inside a user namespace of their own, where the system allows those. See
namespaces(7), pivot_root(2) and mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sysconfig

from agentic_compression.sandbox.inside.kernel import raw_call, unshare

__all__ = ["SCRATCH", "enter", "new_process_tree", "readable_paths"]

SCRATCH = "/tmp"  # noqa: S108 (in the private tree, where nothing else exists)

_NEW_MOUNTS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_READ_ONLY, _NO_SUID, _NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442
_SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")

_libc = ctypes.CDLL(None, use_errno=True)


def readable_paths() -> list[str]:
    """Existing folders and files an interpreter loads modules and libraries from, as named on this machine."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *_SHARED_LIBRARIES}
    with open("/proc/self/maps") as maps:
        mapped = {line.split(None, 5)[5].strip() for line in maps if line.count("/")}
    paths |= {os.path.dirname(path) for path in mapped if ".so" in os.path.basename(path) and os.path.isabs(path)}
    return sorted(path for path in paths if path and path != "/" and os.path.exists(path))


def enter(folder: str, scratch_bytes: int) -> bool:
    """Leave the machine's network, mounts, IPC and host name behind; True when done as root, without a user namespace.

    ``folder`` is an empty one to build the tree on, in a mount namespace that ends with this process and its children.

    Raises:
        OSError: the system does not allow it. The process may be half-way and must end.
    """
    paths = readable_paths()
    flags = _NEW_MOUNTS | _NEW_UTS | _NEW_IPC | _NEW_NETWORK
    as_root = _try_as_root(flags)
    if not as_root:
        _enter_user_namespace(flags)
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    _mount("tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m,mode=755")
    bound: list[str] = []
    for path in paths:
        real = _mirror(folder, path)
        if not any(real == other or real.startswith(other + "/") for other in bound):
            _bind_read_only(real, folder + real)
            bound.append(real)
    os.makedirs(folder + SCRATCH, exist_ok=True)
    _mount("tmpfs", folder + SCRATCH, "tmpfs", _NO_SUID | _NO_DEVICES, f"size={scratch_bytes},nr_inodes=1024,mode=1777")
    _make_read_only(folder, recursive=False)
    os.chdir(folder)
    raw_call(_PIVOT_ROOT[os.uname().machine], b".", b".")
    _check(_libc.umount2(b".", 2))  # MNT_DETACH: the machine's own tree, stacked on top by pivot_root
    os.chdir(SCRATCH)
    return as_root


def new_process_tree() -> None:
    """The next child becomes process 1 of a namespace of its own; all of its descendants die with it."""
    unshare(_NEW_PIDS)


def _try_as_root(flags: int) -> bool:
    if os.geteuid() != 0:
        return False
    try:
        unshare(flags)
    except PermissionError:  # root of a container without CAP_SYS_ADMIN
        return False
    return True


def _enter_user_namespace(flags: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    unshare(flags | _NEW_USER)
    for name, content in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


def _mirror(root: str, path: str) -> str:
    """Make ``path`` exist below ``root`` with the same symbolic links as here; returns where it really lies."""
    current = ""
    parts = [part for part in path.split("/") if part]
    while parts:
        step = f"{current}/{parts.pop(0)}"
        if os.path.islink(step):
            target = os.readlink(step)
            if not os.path.lexists(root + step):
                os.symlink(target, root + step)
            resolved = os.path.normpath(os.path.join(current or "/", target))
            parts = [part for part in resolved.split("/") if part] + parts
            current = ""
        elif os.path.isdir(step):
            os.makedirs(root + step, exist_ok=True)
            current = step
        else:
            if not os.path.exists(root + step):
                os.close(os.open(root + step, os.O_CREAT | os.O_WRONLY, 0o444))
            current = step
    return current


def _bind_read_only(source: str, target: str) -> None:
    _mount(source, target, "", _BIND | _RECURSIVE)
    _make_read_only(target, recursive=True)


def _make_read_only(target: str, *, recursive: bool) -> None:
    try:
        attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", _READ_ONLY | _NO_SUID | _NO_DEVICES, 0, 0, 0), 32)
        raw_call(_MOUNT_SETATTR, -100, os.fsencode(target), 0x8000 if recursive else 0, attributes, 32)
    except OSError:  # before Linux 5.12: this mount alone, with the flags it has
        kept = os.statvfs(target).f_flag & 0xF
        _mount("none", target, "", _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEVICES | kept)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    words = [os.fsencode(word) or None for word in (source, target, kind, data)]
    _check(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), target)


def _check(done: int, path: str | None = None) -> None:
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
