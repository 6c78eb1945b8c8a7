"""Processes that are killed while they write, and several that write at once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from agentic_compression.memory import Workspace, add_experiences, list_quarantined, read_experiences
from agentic_compression.memory.knowledge import refresh_knowledge
from agentic_compression.spec import size_class
from tests.unit.memory.experiences import make_experience

ROOT = Path(__file__).resolve().parents[3]
WRITER = """
import os, signal, sys
from pathlib import Path
from agentic_compression.memory import Workspace, add_experiences
from agentic_compression.memory.knowledge import refresh_knowledge
from agentic_compression.spec import size_class
from tests.unit.memory.experiences import make_experience

workspace, study, first, last, die_at = Workspace(Path(sys.argv[1])), sys.argv[2], *map(int, sys.argv[3:])
calls, replace = 0, Path.replace

def replace_or_die(self, target):
    global calls
    calls += 1
    if calls == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace_or_die
added = 0
for episode in range(first, last):
    with workspace.lock():
        added += len(add_experiences(workspace, [make_experience(study, episode)]))
    refresh_knowledge(workspace, size_class)
    print(episode, flush=True)
print("added", added, flush=True)
"""


def _start(workspace: Workspace, study: str, first: int, last: int, die_at: int = 0) -> subprocess.Popen[str]:
    arguments = [str(workspace.root), study, str(first), str(last), str(die_at)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _episodes(workspace: Workspace) -> list[int]:
    return sorted(item.episode for item in read_experiences(workspace).values())


def test_a_writer_killed_before_the_rename_leaves_all_or_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.lock():
        add_experiences(workspace, [make_experience("one", 0)])
    process = _start(workspace, "one", 1, 9, die_at=1)
    assert process.wait(60) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()
    left_over = list(workspace.experiments.glob(".*.tmp"))
    assert len(left_over) == 1
    assert left_over[0].stat().st_size > 0
    assert _episodes(workspace) == [0]
    with workspace.lock():  # the kernel has released the dead writer's lock
        assert len(add_experiences(workspace, [make_experience("one", 1)])) == 1
    assert _episodes(workspace) == [0, 1]
    assert not list(workspace.experiments.glob(".*.tmp"))
    assert list_quarantined(workspace) == ()


def test_writers_killed_at_any_moment_lose_nothing_they_had_told(tmp_path: Path) -> None:
    workspace, told = Workspace(tmp_path), -1
    moments = random.Random(7)
    for _ in range(3):
        process = _start(workspace, "one", told + 1, 10_000)
        assert process.stdout is not None
        lines = [process.stdout.readline()]  # it has begun
        time.sleep(moments.uniform(0.0, 0.3))
        process.kill()
        lines += process.stdout.read().split()
        process.wait(60)
        process.stdout.close()
        told = max(int(line) for line in lines if line.strip())
        found = _episodes(workspace)
        assert found[: told + 1] == list(range(told + 1))
        assert len(found) <= told + 2  # the one being written when it was killed may be there
        told = found[-1]
    assert list_quarantined(workspace) == ()
    refresh_knowledge(workspace, size_class)
    assert f"held in {told + 1} of {told + 1}" in (workspace.knowledge / "methods" / "rtn.md").read_text()


def test_two_writers_at_once_keep_everything_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    writers = [_start(workspace, "one", 0, 20), _start(workspace, "one", 10, 30), _start(workspace, "two", 0, 5)]
    added = 0
    for writer in writers:
        out, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        added += int(out.split()[-1])
    found = read_experiences(workspace)
    assert added == len(found) == 35
    assert {item.episode for item in found.values() if item.study == "one"} == set(range(30))
    assert list_quarantined(workspace) == ()
    assert "held in 35 of 35 measurements" in (workspace.knowledge / "methods" / "rtn.md").read_text()
