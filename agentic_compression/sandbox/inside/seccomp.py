"""A seccomp filter that lets a single-process Python program compute, and nothing else.

An allow-list in classic BPF, assembled here: what is not listed fails with EPERM, calls newer than the list with ENOSYS
so that the C library falls back to an older one. No sockets (but a connected local stream pair, which asyncio needs),
no new processes, no exec, no signals to anyone, no tracing, mounting, keys, BPF, io_uring, and no change of modes and
times, which Landlock does not cover. See seccomp(2) and linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from agentic_compression.sandbox.inside.kernel import prctl

__all__ = ["assemble", "install"]

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# name: (x86_64, aarch64); from the kernel's unistd headers.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # memory
    **{"mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233)},
    **{"brk": (12, 214), "membarrier": (324, 283)},
    # open descriptors
    **{"read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67)},
    **{"pwrite64": (18, 68), "close": (3, 57), "close_range": (436, 436), "lseek": (8, 62), "dup": (32, 23)},
    **{"dup2": (33, None), "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "poll": (7, None)},
    **{"ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20)},
    **{"epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19)},
    **{"sendfile": (40, 71), "copy_file_range": (326, 285), "fsync": (74, 82), "fdatasync": (75, 83)},
    **{"flock": (73, 32), "ftruncate": (77, 46), "fstat": (5, 80), "fstatfs": (138, 44), "getdents": (78, None)},
    **{"getdents64": (217, 61), "fchdir": (81, 50), "sendto": (44, 206), "recvfrom": (45, 207)},
    **{"getsockname": (51, 204), "getpeername": (52, 205)},
    # paths; namespaces and Landlock decide which
    **{"open": (2, None), "openat": (257, 56), "access": (21, None), "faccessat": (269, 48), "stat": (4, None)},
    **{"faccessat2": (439, 439), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291)},
    **{"statfs": (137, 43), "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49)},
    **{"unlink": (87, None), "unlinkat": (263, 35), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None)},
    **{"rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "symlink": (88, None)},
    **{"symlinkat": (266, 36), "truncate": (76, 45), "umask": (95, 166)},
    # threads, own signal handling, the end
    **{"futex": (202, 98), "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293)},
    **{"set_tid_address": (218, 96), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135)},
    **{"rt_sigreturn": (15, 139), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137)},
    **{"rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "sched_yield": (24, 124), "pause": (34, None)},
    **{"sched_getaffinity": (204, 123), "exit": (60, 93), "exit_group": (231, 94), "restart_syscall": (219, 128)},
    **{"arch_prctl": (158, None)},
    # time and identity
    **{"nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "times": (100, 153)},
    **{"clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "setitimer": (38, 103)},
    **{"getitimer": (36, 102), "alarm": (37, None), "gettid": (186, 178), "getpid": (39, 172)},
    **{"getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176)},
    **{"getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158)},
    **{"getpgrp": (111, None), "getpgid": (121, 155), "getsid": (124, 156), "getrusage": (98, 165)},
    **{"getpriority": (140, 141), "uname": (63, 160), "sysinfo": (99, 179), "getrandom": (318, 278)},
    **{"getrlimit": (97, 163), "setrlimit": (160, 164)},
}
# Allowed for some arguments: (x86_64, aarch64).
_CLONE, _IOCTL, _FCNTL, _PRLIMIT, _SOCKETPAIR = (56, 220), (16, 29), (72, 25), (302, 261), (53, 199)
_FIRST_UNKNOWN = 435  # clone3, whose flags a filter cannot read; then calls later than the list
_X32_BIT = 0x40000000

_CLONE_THREAD = 0x10000
_TERMINAL_AND_BLOCKING = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS TIOCGWINSZ FIONREAD FIONBIO FIO(N)CLEX
_SIGNAL_SETTERS = (8, 10, 15)  # F_SETOWN F_SETSIG F_SETOWN_EX make the kernel signal another process

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

_Instruction = tuple[int, int, int, int]


def assemble(machine: str) -> list[_Instruction]:
    """The filter as ``(code, jump if true, jump if false, operand)``.

    Raises:
        OSError: no table for this machine.
    """
    if machine not in _ARCHITECTURES:
        raise OSError(0, f"no seccomp filter for {machine}, only for {', '.join(_ARCHITECTURES)}")
    token, column = _ARCHITECTURES[machine]
    deny = _ERRNO | errno.EPERM
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, token),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        program += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, deny)]
    for numbers in _ALLOWED.values():
        if numbers[column] is not None:
            program += [(_JUMP_EQUAL, 0, 1, numbers[column] or 0), (_RETURN, 0, 0, _ALLOW)]
    for numbers_pair, body in _conditional():
        program += [(_JUMP_EQUAL, 0, len(body), numbers_pair[column]), *body]
    program += [
        (_JUMP_AT_LEAST, 0, 1, _FIRST_UNKNOWN),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_RETURN, 0, 0, deny),
    ]
    return program


def _conditional() -> list[tuple[tuple[int, int], list[_Instruction]]]:
    """Calls judged by the low halves of their arguments, which is all the kernel reads of these (int, unsigned int)."""
    allow, deny = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    return [
        (_CLONE, [_argument(0), (_JUMP_ANY_BIT, 0, 1, _CLONE_THREAD), allow, deny]),
        (_IOCTL, [_argument(1), *(line for code in _TERMINAL_AND_BLOCKING for line in _if_equal(code, allow)), deny]),
        (_FCNTL, [_argument(1), *(line for code in _SIGNAL_SETTERS for line in _if_equal(code, deny)), allow]),
        (_PRLIMIT, [_argument(0), *_if_equal(0, allow), deny]),
        (
            _SOCKETPAIR,  # AF_UNIX and SOCK_STREAM: a datagram pair could send to any address
            [_argument(0), (_JUMP_EQUAL, 0, 4, 1), _argument(1), (_AND, 0, 0, 0xF), *_if_equal(1, allow), deny],
        ),
    ]


def _argument(index: int) -> _Instruction:
    return (_LOAD, 0, 0, _ARGUMENT + 8 * index)


def _if_equal(value: int, verdict: _Instruction) -> list[_Instruction]:
    return [(_JUMP_EQUAL, 0, 1, value), verdict]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install() -> None:
    """Put the filter on this process for good; needs ``PR_SET_NO_NEW_PRIVS``.

    Raises:
        OSError: the kernel or the machine has no seccomp filters.
    """
    code = b"".join(struct.pack("=HBBI", *line) for line in assemble(os.uname().machine))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p).value)
    prctl(22, 2, ctypes.byref(program))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
