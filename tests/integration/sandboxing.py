"""What the sandbox's tests share: small limits, judging a program, and that nothing of a check is left."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentic_compression.sandbox import (
    ProgramResult,
    SandboxLimits,
    check_function,
    isolation_unavailable_reason,
)

_REASON = isolation_unavailable_reason()
confined = pytest.mark.skipif(_REASON is not None, reason=f"no isolation on this machine: {_REASON}")

LIMITS = SandboxLimits(seconds=20, cpu_seconds=5, memory_bytes=256 << 20, processes=8, file_bytes=1 << 20)
BRIEF = LIMITS.model_copy(update={"seconds": 2.0, "cpu_seconds": 1})
TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(5) == 25\n"
SOLUTION = "def square(x):\n    return x * x\n"


def judge(program: str, *, test: str = TEST, limits: SandboxLimits = LIMITS, entry: str = "square") -> ProgramResult:
    return check_function(textwrap.dedent(program), test, entry, limits=limits)


def probe(expression_body: str, *, limits: SandboxLimits = LIMITS) -> ProgramResult:
    """Run a body that returns ``"blocked"`` when held; passes only then, so that a broken attempt shows up."""
    program = "def attempt():\n" + textwrap.indent(textwrap.dedent(expression_body), "    ")
    test = "def check(candidate):\n    found = candidate()\n    assert found == 'blocked', repr(found)\n"
    return check_function(program, test, "attempt", limits=limits)


def processes_holding(marker: str) -> list[int]:
    """Processes of this machine, anywhere, with ``marker`` on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No guardian, tester, worker or folder outlives its check; the folder's name is on their command lines."""
    folder = tmp_path_factory.mktemp("sandboxes")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert processes_holding(str(folder)) == []
    assert list(folder.iterdir()) == []
