"""What a program may use, and what became of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agentic_compression.records.record import Record

__all__ = ["ProgramResult", "ProgramStatus", "SandboxLimits"]

ProgramStatus = Literal["passed", "failed", "timed_out", "out_of_memory", "killed", "refused", "invalid"]

_MIB = 1 << 20


class SandboxLimits(Record):
    """Bounds on one program; the test that judges it runs under the same ones."""

    seconds: float = Field(default=10.0, gt=0, le=3600, description="wall-clock seconds for loading, calls and tests")
    cpu_seconds: int = Field(default=10, ge=1, le=3600, description="processor seconds, all threads together")
    memory_bytes: int = Field(default=1024 * _MIB, ge=64 * _MIB, description="address space of the program's process")
    processes: int = Field(
        default=16,
        ge=1,
        le=4096,
        description=(
            "threads of the program; processes too where no seccomp filter forbids them altogether. Exact where the "
            "program has a user of its own, which root gives it in namespaces; else what this user runs counts too, "
            "with room for 64 tasks more, and root without namespaces is not counted at all"
        ),
    )
    file_bytes: int = Field(default=16 * _MIB, ge=4096, description="bytes of one file and of the whole scratch folder")
    open_files: int = Field(default=64, ge=16, le=4096, description="file descriptors open at once")
    output_bytes: int = Field(default=16384, ge=0, le=16 * _MIB, description="bytes of printed output that are kept")
    program_bytes: int = Field(default=_MIB, ge=1, le=4 * _MIB, description="size of the program's text that is tried")


class ProgramResult(Record):
    """The verdict on one program."""

    passed: bool = Field(description="every assertion held on values that the program's function returned")
    status: ProgramStatus = Field(
        description=(
            "passed; failed: a wrong answer, an exception, an early exit; timed_out: wall or processor time; "
            "out_of_memory: the memory limit; killed: ended by a signal; refused: the text was not run (too long, "
            "not valid Unicode); invalid: the test itself cannot run here, which says nothing about the program"
        )
    )
    message: str = Field(description="one line of at most 400 characters saying what happened")
    seconds: float = Field(ge=0, description="wall-clock seconds from the start of the sandbox to the verdict")
    output: str = Field(description="the beginning of what the program printed, undecodable bytes escaped")
    isolation: tuple[str, ...] = Field(description="layers that held the program, see isolation()")
