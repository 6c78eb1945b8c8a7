"""A process that waits to measure memory: it answers when asked, and never stays behind."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import os, sys
from agentic_compression.errors import CompressionError
from agentic_compression.evaluation import memory_in_waiting as module
from agentic_compression.evaluation.memory import MemoryProbe, Observation
from agentic_compression.records import EvaluationSettings

asked = 0

def planted(probe, repeats):
    global asked
    asked += repeats
    if probe.path == "oom":
        raise MemoryError("no memory is left")
    if probe.path == "broken":
        raise CompressionError("it does not load")
    if probe.path == "dies":
        os._exit(9)
    return [Observation(growth=1000 + asked, peak_rss=os.getpid(), weights=1)] * repeats

module.observe_memory = planted
path = sys.argv[1]
probe = MemoryProbe(path=path, device="cpu", threads=1, settings=EvaluationSettings())
with module.MemoryInWaiting(probe, 3) as memory:
    assert module.may_fork()
    if path == "unasked":
        print("unasked")
    else:
        try:
            if path == "glance":
                print(memory.glance(), memory.glance())
            measured = memory.measure()
            growth = measured.peak_growth_bytes
            print(growth.n, growth.value, measured.peak_rss_bytes != os.getpid())
        except Exception as error:
            print(type(error).__name__, error)
try:
    os.waitpid(-1, os.WNOHANG)
    print("a child is left")
except ChildProcessError:
    print("no child is left")
"""


def _run(path: str) -> list[str]:
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads forbid a fork
    command = [sys.executable, "-c", SCRIPT, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=one_thread)
    return done.stdout.splitlines()


def test_it_measures_in_another_process_when_asked() -> None:
    assert _run("fine") == ["3 1002.0 True", "no child is left"]


def test_a_glance_is_one_of_the_repetitions() -> None:
    assert _run("glance") == ["1001 1001", "3 1002.0 True", "no child is left"]


def test_it_ends_unasked() -> None:
    assert _run("unasked") == ["unasked", "no child is left"]


def test_its_errors_are_told_as_if_they_had_happened_here() -> None:
    assert _run("oom") == ["MemoryError no memory is left", "no child is left"]
    assert _run("broken") == ["CompressionError it does not load", "no child is left"]


def test_its_death_is_an_error_and_not_a_hanging_pipe() -> None:
    lines = _run("dies")
    assert lines[0].startswith("CompressionError the process that measures memory ended without an answer")
    assert lines[1] == "no child is left"
