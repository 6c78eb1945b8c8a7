"""The supervisor over real child processes: results, crashes, time limits, cancellation, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentic_compression.execution import Supervisor
from agentic_compression.testing.tasks import TaskRequest

ENTRY = "agentic_compression.testing.tasks:misbehave"


@pytest.fixture(scope="module")
def supervisor() -> Iterator[Supervisor]:
    with Supervisor(preload=("agentic_compression.testing.tasks",)) as running:
        yield running


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not _alive(pid):
            return True
        time.sleep(0.02)
    return False


def test_run_returns_the_result_and_progress_of_a_child_in_its_own_group(supervisor: Supervisor) -> None:
    seen: list[tuple[str, int, int]] = []
    outcome = supervisor.run(
        ENTRY,
        TaskRequest(behaviour="echo", text="ü" * 100_000),
        timeout_s=20,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert outcome.status == "succeeded"
    assert outcome.result is not None
    assert outcome.result["text"] == "ü" * 100_000
    assert outcome.result["pid"] == outcome.result["group"] != os.getpid()
    assert seen == [("echoing", 1, 3), ("echoing", 2, 3), ("echoing", 3, 3)]


@pytest.mark.parametrize(
    ("behaviour", "status", "words"),
    [
        ("raise", "failed", "stage gptq: too little data"),
        ("infeasible", "infeasible", "stage gptq: too little data"),
        ("memory", "oom", "cannot allocate"),
        ("crash", "failed", "SIGSEGV"),
        ("exit", "failed", "exit code 0"),
        ("killed", "oom", "killed from outside"),
    ],
)
def test_run_turns_every_end_into_an_outcome(supervisor: Supervisor, behaviour: str, status: str, words: str) -> None:
    request = TaskRequest(behaviour=behaviour, text="stage gptq: too little data")
    outcome = supervisor.run(ENTRY, request, timeout_s=20)
    assert outcome.status == status
    assert outcome.result is None
    assert outcome.error is not None
    assert words in outcome.error
    assert supervisor.run(ENTRY, TaskRequest(behaviour="echo"), timeout_s=20).status == "succeeded"


def test_run_ends_the_whole_group_when_time_is_over(supervisor: Supervisor, tmp_path: Path) -> None:
    note = tmp_path / "pids"
    outcome = supervisor.run(ENTRY, TaskRequest(behaviour="orphan", text=str(note)), timeout_s=1.0)
    assert outcome.status == "timed_out"
    assert outcome.error is not None
    assert "episode_timeout_s" in outcome.error
    assert all(_gone(int(pid)) for pid in note.read_text().split())


def test_run_starts_a_new_forkserver_when_the_old_one_died(supervisor: Supervisor) -> None:
    assert supervisor.run(ENTRY, TaskRequest(behaviour="echo"), timeout_s=20).status == "succeeded"
    assert supervisor._server is not None
    supervisor._server.kill()
    supervisor._server.wait()
    assert supervisor.run(ENTRY, TaskRequest(behaviour="echo"), timeout_s=20).status == "succeeded"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_main_process(tmp_path: Path, how: signal.Signals) -> None:
    note = tmp_path / "pids"
    program = (
        "from agentic_compression.execution import Supervisor\n"
        "from agentic_compression.testing.tasks import TaskRequest\n"
        "with Supervisor(preload=()) as s:\n"
        f"    s.run({ENTRY!r}, TaskRequest(behaviour='orphan', text={str(note)!r}), timeout_s=60)\n"
    )
    main = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (note.exists() and len(note.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child, grandchild = (int(pid) for pid in note.read_text().split())
    main.send_signal(how)
    main.wait(timeout=10)
    assert _gone(child)
    assert _gone(grandchild)
