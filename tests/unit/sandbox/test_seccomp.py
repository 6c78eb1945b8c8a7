"""The assembled filter, executed by a small interpreter of classic BPF written here."""

from __future__ import annotations

import errno
import struct

import pytest

from agentic_compression.sandbox.inside import seccomp

ALLOW, DENY, MISSING, KILL = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000
TOKEN = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def decide(machine: str, number: int, *arguments: int, token: int | None = None) -> int:
    data = struct.pack("=IIQ6Q", number, token or TOKEN[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    program, at, register = seccomp.assemble(machine), 0, 0
    while True:
        code, true, false, operand = program[at]
        assert 0 <= true < 256
        assert 0 <= false < 256
        at += 1
        if code == 0x20:
            register = struct.unpack_from("=I", data, operand)[0]
        elif code == 0x54:
            register &= operand
        elif code == 0x06:
            return operand
        else:
            held = {0x15: register == operand, 0x35: register >= operand, 0x45: bool(register & operand)}[code]
            at += true if held else false


@pytest.mark.parametrize("machine", TOKEN)
def test_filter_fits_the_kernel_and_judges_other_architectures(machine: str) -> None:
    assert len(seccomp.assemble(machine)) < 4096
    assert decide(machine, 0, token=0x40000003) == KILL  # i386 on x86_64: other numbers for the same calls


@pytest.mark.parametrize(
    ("machine", "allowed", "denied"),
    [
        ("x86_64", (0, 1, 9, 202, 231, 257, 318), (41, 42, 57, 58, 59, 62, 90, 101, 157, 165, 200, 234, 272, 310, 321)),
        ("aarch64", (63, 64, 222, 98, 94, 56, 278), (198, 203, 221, 129, 52, 117, 167, 40, 130, 131, 97, 270, 280)),
    ],
)
def test_computing_is_allowed_and_reaching_out_is_not(
    machine: str, allowed: tuple[int, ...], denied: tuple[int, ...]
) -> None:
    """Denied: socket, connect, fork, exec, kill, chmod, ptrace, prctl, mount, tgkill, unshare, vm_readv, bpf."""
    assert [decide(machine, number) for number in allowed] == [ALLOW] * len(allowed)
    assert [decide(machine, number) for number in denied] == [DENY] * len(denied)
    assert decide(machine, 435) == MISSING  # clone3


@pytest.mark.parametrize(
    ("machine", "clone", "ioctl", "fcntl", "prlimit", "pair"),
    [("x86_64", 56, 16, 72, 302, 53), ("aarch64", 220, 29, 25, 261, 199)],
)
def test_arguments_decide(machine: str, clone: int, ioctl: int, fcntl: int, prlimit: int, pair: int) -> None:
    assert decide(machine, clone, 0x3D0F00) == ALLOW  # what pthread_create asks for
    assert decide(machine, clone, 0x1200011) == DENY  # what fork asks for
    assert decide(machine, clone, 1 << 33) == DENY
    assert decide(machine, ioctl, 1, 0x5401) == ALLOW
    assert decide(machine, ioctl, 1, 0x5412) == DENY  # TIOCSTI types into a terminal
    assert decide(machine, fcntl, 3, 3) == ALLOW
    assert [decide(machine, fcntl, 3, command) for command in (8, 10, 15)] == [DENY] * 3
    assert decide(machine, prlimit, 0) == ALLOW
    assert decide(machine, prlimit, 77) == DENY
    assert decide(machine, pair, 1, 0x80001) == ALLOW
    assert decide(machine, pair, 1, 2) == DENY
    assert decide(machine, pair, 2, 1) == DENY


def test_x32_calls_are_denied() -> None:
    assert decide("x86_64", 0x40000000) == DENY
    assert decide("x86_64", 0xFFFFFFFF) == DENY


def test_unknown_machine_has_no_filter() -> None:
    with pytest.raises(OSError, match="no seccomp filter for riscv64"):
        seccomp.assemble("riscv64")
