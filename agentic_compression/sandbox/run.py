"""Starting a sandbox from outside, and what this machine can do to hold a program."""

from __future__ import annotations

import base64
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentic_compression.errors import UnavailableError
from agentic_compression.sandbox.inside import wire
from agentic_compression.sandbox.result import ProgramResult, SandboxLimits

__all__ = ["check_function", "isolation", "isolation_unavailable_reason"]

_START = Path(__file__).parent / "inside" / "start.py"
_STARTUP_SECONDS = 20.0  # for an interpreter on a busy machine; the program's own time runs inside
_LAYERS = ("namespaces", "landlock", "seccomp")


def isolation() -> tuple[str, ...]:
    """Layers this machine gives: some of ``namespaces``, ``landlock``, ``seccomp``, each tried, and ``limits``."""
    found = _probe()
    return (*(layer for layer in _LAYERS if found.get(layer) == ""), "limits")


def isolation_unavailable_reason() -> str | None:
    """Why programs cannot be kept from the network and the files here, or None when they can."""
    found = _probe()
    if not found:
        return f"programs can be confined on Linux only, this is {sys.platform}"
    blocks_network = found["namespaces"] == "" or found["seccomp"] == ""
    blocks_files = found["namespaces"] == "" or found["landlock"] == ""
    if blocks_network and blocks_files:
        return None
    missing = [name for name, blocked in (("the network", blocks_network), ("the files", blocks_files)) if not blocked]
    reasons = "; ".join(f"{layer}: {reason}" for layer, reason in found.items() if reason)
    return f"programs cannot be kept from {' and '.join(missing)} here ({reasons})"


def check_function(
    program: str,
    test: str,
    entry_point: str,
    *,
    helpers: str = "",
    limits: SandboxLimits | None = None,
    insist: bool = False,
) -> ProgramResult:
    """Whether ``program``'s function ``entry_point`` satisfies ``check(candidate)`` of ``test``.

    Args:
        program: Untrusted Python source, e.g. a prompt and its completion.
        test: Trusted source that defines ``check``, which raises unless the function it is given behaves.
        entry_point: Name of the function, which the test may use too.
        helpers: Trusted source that runs before the test, e.g. the prompt.
        limits: Bounds on the program; the default ones when None.
        insist: Run even where the network and the files cannot be kept from the program.

    Raises:
        UnavailableError: programs cannot be confined here, or the sandbox itself did not start.
    """
    limits = limits or SandboxLimits()
    layers = isolation()
    reason = isolation_unavailable_reason()
    if sys.platform != "linux":
        raise UnavailableError(f"{reason}; run the evaluation on Linux or leave out tasks that execute code")
    if reason is not None and not insist:
        raise UnavailableError(
            f"{reason}; use Linux 5.13 or later with Landlock and seccomp, or allow user namespaces, or insist "
            "on running model-written code with resource limits alone"
        )
    if (refusal := _refusal(program, limits)) is not None:
        return _result("refused", refusal, 0.0, "", layers)
    texts = {"program": program, "test": test, "helpers": helpers, "entry_point": entry_point}
    start = time.monotonic()
    outcome = _guard({"mode": "run", "layers": list(layers), "limits": limits.model_dump()}, texts, limits.seconds)
    seconds = time.monotonic() - start
    if "broken" in outcome:
        raise UnavailableError(
            f"the sandbox did not start: {outcome['broken']}; try again, then check free memory and /tmp"
        )
    output = base64.b64decode(outcome["output"]).decode("utf-8", "backslashreplace")
    return _result(outcome["status"], outcome["message"], seconds, output, layers)


def _refusal(program: str, limits: SandboxLimits) -> str | None:
    try:
        size = len(program.encode())
    except UnicodeEncodeError:
        return "the program is not valid Unicode text"
    if size > limits.program_bytes:
        return f"the program has {size} bytes, at most {limits.program_bytes} are tried"
    return None


def _result(status: Any, message: str, seconds: float, output: str, layers: tuple[str, ...]) -> ProgramResult:
    line = "".join(character if character.isprintable() else " " for character in message)
    line = " ".join(line.split())
    return ProgramResult(
        passed=status == "passed",
        status=status,
        message=line if len(line) <= 400 else line[:399] + "…",
        seconds=seconds,
        output=output,
        isolation=layers,
    )


@lru_cache(maxsize=1)
def _probe() -> dict[str, str]:
    """Layer to an empty text or to why it is missing; empty where this is not Linux."""
    if sys.platform != "linux":
        return {}
    answer = _guard({"mode": "probe", "limits": SandboxLimits().model_dump()}, None, 10.0)
    if "layers" not in answer:
        raise UnavailableError(f"the sandbox did not start: {answer['broken']}; check that {sys.executable} runs")
    layers: dict[str, str] = answer["layers"]
    return layers


def _guard(configuration: dict[str, Any], texts: dict[str, str] | None, seconds: float) -> dict[str, Any]:
    """One guardian process from start to end; ``broken`` in the answer says that it did not work."""
    request = b"".join(wire.frame(message) for message in (configuration, texts) if message is not None)
    command = [sys.executable, "-I", "-S", "-X", "utf8", str(_START)]
    with tempfile.TemporaryDirectory(prefix="acf-sandbox-") as folder:
        process = subprocess.Popen(
            [*command, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            start_new_session=True,
        )
        with process:
            try:
                said, complaint = process.communicate(request, timeout=seconds + _STARTUP_SECONDS)
            except subprocess.TimeoutExpired:
                return {"broken": f"no answer within {seconds + _STARTUP_SECONDS:g} s"}
            finally:
                if process.poll() is None:
                    process.kill()
    answer = wire.parse_frame(said)
    if answer is None:
        return {"broken": complaint.decode(errors="replace").strip()[-500:] or f"exit status {process.returncode}"}
    return answer
